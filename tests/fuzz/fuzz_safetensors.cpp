// Fuzz target: the reader of .safetensors files.
//
// The input is a file, whose first eight bytes (the header's length) are replaced by the true length
// up to the last '}' if its first byte is even: mutations of the header then get past the length.
// What is taken must lie inside of the file, and reading it must give the file's own bytes.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/safetensors.h"

namespace {

[[noreturn]] void found(const std::string& what) {
  std::cerr << "fuzz_safetensors: " << what << std::endl;
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int memory = memfd_create("fuzz.safetensors", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(memory);
  std::string file(reinterpret_cast<const char*>(data), size);
  if (const size_t end = file.rfind('}'); size > 8 && end != std::string::npos && end >= 8 &&
                                          static_cast<unsigned char>(file[0]) % 2 == 0) {
    const uint64_t length = end + 1 - 8;
    std::memcpy(file.data(), &length, sizeof length);
  }
  if (ftruncate(memory, 0) != 0 ||
      pwrite(memory, file.data(), file.size(), 0) != static_cast<ssize_t>(file.size()))
    found("no file in memory");
  try {
    const longnet::SafetensorsFile read(path);
    uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof length);
    for (const auto& [name, entry] : read.entries()) {
      const int64_t bytes = entry.end - entry.begin;
      const uint64_t at = 8 + length + static_cast<uint64_t>(entry.begin);
      if (bytes < 0 || at + static_cast<uint64_t>(bytes) > file.size()) found("outside: " + name);
      std::vector<char> content(static_cast<size_t>(bytes));
      read.read(name, 0, content.data(), bytes);
      if (bytes > 0 && std::memcmp(content.data(), file.data() + at, content.size()) != 0)
        found("other bytes: " + name);
    }
  } catch (const longnet::Error& e) {
    const std::string message = e.what();
    if (message.empty() || message.rfind("internal error", 0) == 0) found("internals: " + message);
  }
  return 0;
}
