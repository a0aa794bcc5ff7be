// Fuzz target: the parser of configurations, YAML text and key=value words.
//
// The input's lines after the last "%%" line are words, what stands before is the file. Anything
// may be refused, by longnet::Error with one line of text that says no "internal error"; nothing else
// may be thrown. What is taken must come out the same when it is printed and read again.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/error.h"

namespace {

[[noreturn]] void found(const std::string& what) {
  std::cerr << "fuzz_config: " << what << std::endl;
  std::abort();
}

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> all;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    all.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string text(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> words;
  if (const size_t mark = text.rfind("%%\n"); mark != std::string::npos) {
    words = lines(text.substr(mark + 3));
    text.resize(mark);
  }
  try {
    const longnet::Config config = longnet::parse_config(text, "fuzz.yaml", words);
    const longnet::Config again = longnet::parse_config(longnet::to_yaml(config), "again.yaml", {});
    if (!(again == config)) found("printed and read again, it differs");
  } catch (const longnet::Error& e) {
    const std::string message = e.what();
    if (message.empty()) found("a refusal without a word");
    if (message.rfind("internal error", 0) == 0) found("internals: " + message);
    for (const char c : message)
      if (static_cast<unsigned char>(c) < 0x20) found("a control character in: " + message);
  }
  return 0;
}
