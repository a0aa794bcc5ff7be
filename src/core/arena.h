// Arena: memory of one purpose (parameters, activations, ...), handed out in pieces aligned to 256
// bytes.
//
// All buffers of a step are allocated once, when the model is built; a step allocates nothing. On a
// GPU reserve() allocates the memory of a purpose as one block. A counting arena only counts and
// returns addresses that must not be dereferenced: `longnet plan` builds the real model on it. An
// arena is not thread-safe; different threads may use different arenas. Device memory comes from
// the selected device (device_runtime.h).
#pragma once

#include <atomic>
#include <cstddef>
#include <initializer_list>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace longnet {

class Arena {
 public:
  /// purpose: the word shown in memory tables, e.g. "activations". counting: no real memory.
  /// device: where the memory lies; a GPU must be the selected one.
  explicit Arena(std::string purpose, bool counting = false, Device device = {});
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Allocates one block now; later allocations are cut from it while they fit. bytes() of a
  /// counting arena is exactly the size needed. For GPUs, where every block costs a driver call.
  void reserve(int64_t bytes);

  /// Uninitialised memory, aligned to kAlignment, valid until the arena is destroyed. Throws Error
  /// if there is no memory; the message gives the purpose, the bytes requested, what all arenas
  /// hold and, on a GPU, the free memory.
  TensorView allocate(DType dtype, std::initializer_list<int64_t> shape);
  /// As allocate(), filled with zero bytes; returns when the memory is filled.
  TensorView allocate_zeroed(DType dtype, std::initializer_list<int64_t> shape);
  void* allocate_bytes(int64_t bytes);

  const std::string& purpose() const { return purpose_; }
  bool counting() const { return counting_; }
  int64_t bytes() const { return bytes_; }  // handed out so far, padding included
  Device device() const { return device_; }

 private:
  void* take_block(int64_t bytes);
  std::string purpose_;
  bool counting_;
  Device device_;
  std::atomic<int64_t> bytes_ = 0;  // read by other arenas' messages
  std::vector<void*> blocks_;
  char* reserved_ = nullptr;  // the unused rest of reserve()
  int64_t reserved_bytes_ = 0;
};

/// "parameters 138240 bytes, activations 976896 bytes": every arena of the process that holds real
/// memory, in order of construction; "nothing" if there is none.
std::string arena_table();

}  // namespace longnet
