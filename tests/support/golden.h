// Reads the golden files of tests/golden (.safetensors written by tests/reference/make_golden.py):
// every tensor as float or int64, and the case description as JSON. For trusted test files only.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/source_folder.h"

namespace longnet::test {

struct GoldenTensor {
  std::vector<int64_t> shape;
  std::vector<float> f32;    // of an F32 tensor
  std::vector<int64_t> i64;  // of an I64 tensor
};

struct GoldenFile {
  nlohmann::json description;  // metadata key "case"
  std::map<std::string, GoldenTensor> tensors;

  /// path: absolute, or a file name inside tests/golden.
  explicit GoldenFile(const std::string& name) {
    const std::filesystem::path path = std::filesystem::path(source_folder()) / "tests/golden" / name;
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path.string() + ": cannot open");
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    uint64_t header_bytes = 0;
    if (bytes.size() >= 8) std::memcpy(&header_bytes, bytes.data(), 8);
    if (bytes.size() < 8 || header_bytes > bytes.size() - 8)
      throw std::runtime_error(path.string() + ": too short");
    const nlohmann::json header = nlohmann::json::parse(bytes.substr(8, header_bytes));
    description = nlohmann::json::parse(header.at("__metadata__").at("case").get<std::string>());
    const char* data = bytes.data() + 8 + header_bytes;
    for (const auto& [key, entry] : header.items()) {
      if (key == "__metadata__") continue;
      GoldenTensor tensor{entry.at("shape").get<std::vector<int64_t>>(), {}, {}};
      const int64_t begin = entry.at("data_offsets").at(0), end = entry.at("data_offsets").at(1);
      if (end > static_cast<int64_t>(bytes.size() - 8 - header_bytes))
        throw std::runtime_error(path.string() + ": " + key + " is cut off");
      const auto copy = [&](auto& values) {
        values.resize((end - begin) / sizeof(values[0]));
        std::memcpy(values.data(), data + begin, end - begin);
      };
      if (entry.at("dtype") == "F32")
        copy(tensor.f32);
      else if (entry.at("dtype") == "I64")
        copy(tensor.i64);
      else
        throw std::runtime_error(path.string() + ": " + key + " is neither F32 nor I64");
      tensors.emplace(key, std::move(tensor));
    }
  }

  bool contains(const std::string& name) const { return tensors.count(name) != 0; }
  const GoldenTensor& at(const std::string& name) const { return tensors.at(name); }
  const std::vector<float>& floats(const std::string& name) const { return tensors.at(name).f32; }
};

/// All golden files whose name begins with prefix ("attention-"), sorted.
inline std::vector<std::string> golden_names(const std::string& prefix) {
  std::map<std::string, int> names;
  for (const auto& entry : std::filesystem::directory_iterator(source_folder() + "/tests/golden"))
    if (entry.path().filename().string().rfind(prefix, 0) == 0)
      names[entry.path().filename().string()] = 1;
  std::vector<std::string> sorted;
  for (const auto& [name, one] : names) sorted.push_back(name);
  return sorted;
}

}  // namespace longnet::test
