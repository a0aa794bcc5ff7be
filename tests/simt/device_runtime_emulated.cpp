// device_runtime.h on a machine without a GPU: device 0 of the emulator. Its memory is the host's,
// streams and events are names, and everything is finished when the call returns. Twins:
// src/core/device_runtime_cuda.cpp; the stub, which the programs of tests/simt do not link because
// this comes first.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "core/device_runtime.h"

namespace longnet::device_runtime {
namespace {

/// Exactly `bytes`, so that address checks see the end; NaN, so that unwritten memory shows.
void* take(int64_t bytes) {
  void* data = nullptr;
  if (bytes <= 0 || posix_memalign(&data, kAlignment, static_cast<size_t>(bytes)) != 0)
    return nullptr;
  std::memset(data, 0xff, static_cast<size_t>(bytes));
  return data;
}

template <typename Handle>
Handle next_name() {
  static std::atomic<uintptr_t> last{0};
  return reinterpret_cast<Handle>(++last);
}

}  // namespace

bool built_with_cuda() { return true; }
Availability availability() { return {{"emulator"}, ""}; }
void select(Device device) {
  LN_CHECK(device.type == DeviceType::kCUDA && device.index == 0,
           "the emulator has one GPU, cuda:0, and not {}", device_name(device));
}
MemoryInfo memory_info() { return {int64_t{1} << 32, int64_t{1} << 32}; }

void* allocate(int64_t bytes) { return take(bytes); }
void free(void* data) noexcept { std::free(data); }
void* allocate_host(int64_t bytes) { return take(bytes); }
void free_host(void* data) noexcept { std::free(data); }

void copy_to_device(void* device_data, const void* host_data, int64_t bytes, Stream) {
  std::memcpy(device_data, host_data, static_cast<size_t>(bytes));
}
void copy_to_host(void* host_data, const void* device_data, int64_t bytes, Stream) {
  std::memcpy(host_data, device_data, static_cast<size_t>(bytes));
}
void copy_on_device(void* out, const void* in, int64_t bytes, Stream) {
  std::memmove(out, in, static_cast<size_t>(bytes));
}
void fill_bytes(void* device_data, uint8_t value, int64_t bytes, Stream) {
  std::memset(device_data, value, static_cast<size_t>(bytes));
}

Stream make_stream(bool) { return next_name<Stream>(); }
void destroy_stream(Stream) noexcept {}
bool finished(Stream) { return true; }
void wait(Stream) {}

Event make_event() { return next_name<Event>(); }
void destroy_event(Event) noexcept {}
void record(Event, Stream) {}
void wait_for(Stream, Event) {}
bool finished(Event) { return true; }
void wait(Event) {}

void range_push(const char*) noexcept {}
void range_pop() noexcept {}

}  // namespace longnet::device_runtime
