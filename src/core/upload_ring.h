// UploadRing: copies from host to GPU memory that the host does not wait for.
//
// Bytes are first copied into a slot of page-locked memory, so the caller may reuse its own memory
// at once and the copy to the GPU runs beside the host. A slot is free again when the event after
// its copy has passed. The host waits only if no slot is free and the limit is reached, and then
// for the event of the oldest copy, not for the stream. Kept with the Context:
// Context::kept<UploadRing>(), or upload(). Copies in one direction only.
#pragma once

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "core/context.h"
#include "core/device_runtime.h"

namespace longnet {

class UploadRing {
 public:
  static constexpr int64_t kLimitBytes = int64_t{64} << 20;

  /// limit_bytes: page-locked memory held at most, a power of two of at least 4 kAlignment.
  explicit UploadRing(int64_t limit_bytes = kLimitBytes);
  /// Waits for the copies.
  ~UploadRing();
  UploadRing(const UploadRing&) = delete;
  UploadRing& operator=(const UploadRing&) = delete;

  /// Orders the copy of `bytes` on the context's stream; `host_data` may be reused on return. More
  /// than a quarter of the limit travels in several pieces. Throws Error if there is no page-locked
  /// memory.
  /// memory.
  void copy(const Context& context, void* device_data, const void* host_data, int64_t bytes);

 private:
  struct Upload {  // bytes [begin, end) of a block, on their way until the event
    int64_t begin, end;
    device_runtime::OwnedEvent event;
  };
  struct Block {  // a ring of its own
    char* data;
    int64_t bytes;
    std::deque<Upload> uploads;  // oldest first
  };

  /// A free slot of `bytes` in a block; waits if necessary.
  std::pair<Block*, int64_t> take(const Context& context, int64_t bytes);
  int64_t free_place(Block& block, int64_t bytes);
  void release_oldest(Block& block);
  void add_block(int64_t bytes);
  device_runtime::OwnedEvent take_event();

  int64_t limit_bytes_;
  int64_t held_bytes_ = 0;
  std::deque<Block> blocks_;  // each at least twice as large as the one before
  std::vector<device_runtime::OwnedEvent> events_;
};

/// Orders a copy of host memory to the context's GPU on its stream; `host_data` may be reused on
/// return.
void upload(Context& context, void* device_data, const void* host_data, int64_t bytes);

}  // namespace longnet
