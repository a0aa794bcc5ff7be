// See upload_ring.h. Memory grows in blocks while uploads find no free slot and the limit allows
// it, so small models hold little and the size settles in the first steps.
#include "core/upload_ring.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/alignment.h"

namespace longnet {
namespace {

constexpr int64_t kFirstBlockBytes = int64_t{1} << 20;

}  // namespace

UploadRing::UploadRing(int64_t limit_bytes) : limit_bytes_(limit_bytes) {
  LN_CHECK(limit_bytes >= 4 * kAlignment && std::has_single_bit(static_cast<uint64_t>(limit_bytes)),
           "a limit of {} bytes", limit_bytes);
}

UploadRing::~UploadRing() {
  for (Block& block : blocks_) {
    // A failed device cannot be waited for; its memory is not read any more either.
    try {
      for (Upload& sent : block.uploads) device_runtime::wait(sent.event.get());
    } catch (const Error&) {
    }
    device_runtime::free_host(block.data);
  }
}

void UploadRing::copy(const Context& context, void* device_data, const void* host_data,
                      int64_t bytes) {
  const device_runtime::Stream stream = context.stream();
  const int64_t most = limit_bytes_ / 4;
  for (int64_t done = 0; done < bytes; done += most) {
    const int64_t count = std::min(most, bytes - done);
    const auto [block, begin] = take(context, aligned_bytes(count));
    std::memcpy(block->data + begin, static_cast<const char*>(host_data) + done,
                static_cast<size_t>(count));
    device_runtime::OwnedEvent event = take_event();
    device_runtime::copy_to_device(static_cast<char*>(device_data) + done, block->data + begin,
                                   count, stream);
    device_runtime::record(event.get(), stream);
    block->uploads.push_back({begin, begin + aligned_bytes(count), std::move(event)});
  }
}

std::pair<UploadRing::Block*, int64_t> UploadRing::take(const Context& context, int64_t bytes) {
  for (;;) {
    for (Block& block : blocks_)
      if (const int64_t begin = free_place(block, bytes); begin >= 0) return {&block, begin};
    const int64_t largest = blocks_.empty() ? 0 : blocks_.back().bytes;
    const int64_t wanted =
        std::max({std::min(kFirstBlockBytes, limit_bytes_ / 4), 2 * largest,
                  static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(bytes)))});
    if (held_bytes_ + wanted <= limit_bytes_) {
      add_block(wanted);
      continue;
    }
    // Blocks smaller than a quarter of the limit leave room for a larger one: the last one is as
    // large as any upload.
    Block& last = blocks_.back();
    context.wait(last.uploads.front().event.get());
    release_oldest(last);
  }
}

/// Where `bytes` fit without waiting, -1: nowhere.
int64_t UploadRing::free_place(Block& block, int64_t bytes) {
  while (!block.uploads.empty() && device_runtime::finished(block.uploads.front().event.get()))
    release_oldest(block);
  if (block.uploads.empty()) return bytes <= block.bytes ? 0 : -1;
  const int64_t oldest = block.uploads.front().begin, next = block.uploads.back().end;
  if (next <= oldest) return next + bytes <= oldest ? next : -1;  // in use around the end
  if (next + bytes <= block.bytes) return next;
  return bytes <= oldest ? 0 : -1;
}

void UploadRing::release_oldest(Block& block) {
  events_.push_back(std::move(block.uploads.front().event));
  block.uploads.pop_front();
}

void UploadRing::add_block(int64_t bytes) {
  void* data = device_runtime::allocate_host(bytes);
  if (data == nullptr)
    throw Error("no {} bytes of page-locked host memory for copies to the GPU; free host memory",
                bytes);
  blocks_.push_back({static_cast<char*>(data), bytes, {}});
  held_bytes_ += bytes;
}

device_runtime::OwnedEvent UploadRing::take_event() {
  if (events_.empty()) return device_runtime::OwnedEvent(device_runtime::make_event());
  device_runtime::OwnedEvent event = std::move(events_.back());
  events_.pop_back();
  return event;
}

void upload(Context& context, void* device_data, const void* host_data, int64_t bytes) {
  context.kept<UploadRing>().copy(context, device_data, host_data, bytes);
}

}  // namespace longnet
