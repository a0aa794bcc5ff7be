// Arena: memory of one purpose (parameters, activations, ...), handed out in 256-byte aligned
// pieces.
//
// All buffers of a step are taken once, when the model is built; a step allocates nothing. On a GPU
// reserve() takes everything of a purpose in one block. A counting arena hands out addresses that
// must not be dereferenced and only counts: `longnet plan` builds the real model on it. One arena
// is not thread-safe, several are. The device's memory is the selected device's (device_runtime.h).
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
  /// device: where the memory lies; with a GPU it must be the selected one.
  explicit Arena(std::string purpose, bool counting = false, Device device = {});
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Takes one block now, from which the next allocations are cut as long as they fit; what a
  /// counting arena's bytes() says is exactly enough. For GPUs, where every block costs a call of
  /// the driver.
  void reserve(int64_t bytes);

  /// Uninitialised memory, aligned to kAlignment, valid until the arena dies.
  /// Throws Error naming the purpose, the bytes wanted, what all arenas hold and, on a GPU, what is
  /// free if there is no memory.
  TensorView allocate(DType dtype, std::initializer_list<int64_t> shape);
  /// The same, filled with zero bytes; waits for it.
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
  char* reserved_ = nullptr;  // the rest of what reserve() took
  int64_t reserved_bytes_ = 0;
};

/// "parameters 138240 bytes, activations 976896 bytes": every arena of the process that holds real
/// memory, in order of construction; "nothing" if there is none.
std::string arena_table();

}  // namespace longnet
