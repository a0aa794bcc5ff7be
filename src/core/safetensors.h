// Reading and writing .safetensors files: u64 header length, JSON header, little-endian data.
//
// The reader checks everything that can be wrong in a damaged or hostile file (lengths, overlaps,
// ranges, types, duplicate names, sizes) before it uses any data; its errors name the file and the
// fault.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/input_file.h"
#include "core/tensor.h"

namespace longnet {

struct SafetensorsEntry {
  std::string dtype;  // "F32", "F64", "BF16", "I64", ...
  std::vector<int64_t> shape;
  int64_t begin = 0, end = 0;  // bytes from the start of the data part
  int64_t elements() const;
};

/// An open file; tensors are read when they are requested.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  bool contains(const std::string& name) const { return entries_.count(name) != 0; }
  /// Throws Error naming file and tensor if the tensor is missing.
  const SafetensorsEntry& entry(const std::string& name) const;
  /// Copies raw bytes [begin, begin + bytes) of a tensor.
  void read(const std::string& name, int64_t begin, void* to, int64_t bytes) const;
  /// Converted copies: F32, F64, BF16, F16 -> float; I64, I32, U16, U8 -> int64.
  std::vector<float> floats(const std::string& name) const;
  /// As floats(name), elements [begin, begin + count) only.
  std::vector<float> floats(const std::string& name, int64_t begin, int64_t count) const;
  std::vector<int64_t> integers(const std::string& name) const;

 private:
  InputFile file_;
  std::map<std::string, SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
  int64_t data_begin_ = 0;
};

/// One tensor to write: contiguous host memory, f32 / bf16 / i64, shape of any rank.
struct SafetensorsTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  /// Used in place of data for a tensor that does not lie in memory as a whole: copies its bytes
  /// [begin, begin + bytes) to `to`. Called in rising order, in pieces of at most 16 MiB.
  std::function<void(int64_t begin, void* to, int64_t bytes)> read = {};
};
/// Writes the file under a temporary name, syncs and renames it (output_file.h); throws Error with
/// path and cause (a full disk included). written: called with every piece of the file in order,
/// for a checksum.
void write_safetensors(const std::string& path, const std::vector<SafetensorsTensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {},
                       const std::function<void(const void* data, int64_t bytes)>& written = {});

}  // namespace longnet
