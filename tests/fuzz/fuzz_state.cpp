// Fuzz target: state.json, from text to TrainingState, without the checksum that would refuse nearly
// everything.
//
// Anything may be refused by longnet::Error; what is taken must come out the same when it is written
// and read again. The input's first byte gives the format version.
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "core/error.h"
#include "core/json.h"
#include "train/training_state.h"

namespace {

[[noreturn]] void found(const std::string& what) {
  std::cerr << "fuzz_state: " << what << std::endl;
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const int version = 1 + data[0] % longnet::kStateVersion;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    const nlohmann::json json = longnet::parse_json(text);
    const longnet::TrainingState state = longnet::state_from_json(json, version, "state.json");
    const std::string written = longnet::json_text(longnet::to_json(state));
    const longnet::TrainingState again = longnet::state_from_json(
        longnet::parse_json(written), longnet::kStateVersion, "again.json");
    if (version >= 3 && !(again == state)) found("written and read again, it differs: " + written);
  } catch (const longnet::Error& e) {
    const std::string message = e.what();
    if (message.empty() || message.rfind("internal error", 0) == 0) found("internals: " + message);
  }
  return 0;
}
