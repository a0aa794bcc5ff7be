// Arena: memory of one purpose (parameters, activations, ...), handed out in 256-byte aligned
// pieces.
//
// All buffers of a step are taken once, when the model is built; a step allocates nothing. A
// counting arena hands out addresses that must not be dereferenced and only counts: `longnet plan`
// builds the real model on it. Not thread-safe.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace longnet {

class Arena {
 public:
  /// purpose: the word shown in memory tables, e.g. "activations". counting: no real memory.
  explicit Arena(std::string purpose, bool counting = false, Device device = {});
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Uninitialised memory, aligned to kAlignment, valid until the arena dies.
  /// Throws Error naming the purpose, the bytes wanted and the bytes held if there is no memory.
  TensorView allocate(DType dtype, std::initializer_list<int64_t> shape);
  /// The same, filled with zero bytes.
  TensorView allocate_zeroed(DType dtype, std::initializer_list<int64_t> shape);
  void* allocate_bytes(int64_t bytes);

  const std::string& purpose() const { return purpose_; }
  bool counting() const { return counting_; }
  int64_t bytes() const { return bytes_; }  // handed out so far, padding included

 private:
  std::string purpose_;
  bool counting_;
  Device device_;
  int64_t bytes_ = 0;
  std::vector<void*> blocks_;
};

}  // namespace longnet
