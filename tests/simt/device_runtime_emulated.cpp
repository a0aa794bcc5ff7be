// device_runtime.h on a machine without a GPU: device 0 of the emulator. Its memory is the host's
// and kernels run when they are launched. Copies between device and page-locked memory happen as
// late as they may: when a kernel or another operation on the same stream, or a wait for the stream
// or for an event behind them, needs them. So a host that writes over the source too early, or
// reads the target too early, gets wrong numbers here as on a GPU. Twins:
// src/core/device_runtime_cuda.cpp; the stub, which the programs of tests/simt do not link because
// this comes first.
#include "simt/device_runtime_emulated.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

#include "core/device_runtime.h"

namespace longnet {
namespace simt {
extern int bug;
}

namespace device_runtime {
namespace {

struct Copy {
  int64_t number;  // in order of issue, over all streams
  void* to;
  const void* from;
  int64_t bytes;
};

/// Everything there is of the device.
struct Runtime {
  std::mutex mutex;
  std::map<void*, int64_t> device_memory;             // bytes, by address
  std::map<const char*, int64_t> host_memory;         // page-locked
  std::map<void*, std::deque<Copy>> waiting;          // of a stream, oldest first
  std::map<Event, std::pair<void*, int64_t>> events;  // stream and the last copy before it
  int64_t capacity = int64_t{4} << 30, used = 0;
  int64_t copies = 0;
  uintptr_t names = 0;
  simt::RuntimeCalls calls;
};
Runtime& runtime() {
  static Runtime* instance = new Runtime;  // contexts may die after static objects
  return *instance;
}
using Lock = std::lock_guard<std::mutex>;

/// Exactly `bytes`, so that address checks see the end; NaN, so that unwritten memory shows.
void* take(int64_t bytes) {
  void* data = nullptr;
  if (bytes <= 0 || posix_memalign(&data, kAlignment, static_cast<size_t>(bytes)) != 0)
    return nullptr;
  std::memset(data, 0xff, static_cast<size_t>(bytes));
  return data;
}

bool page_locked(const void* data) {
  const auto& memory = runtime().host_memory;
  const char* place = static_cast<const char*>(data);
  auto next = memory.upper_bound(place);
  if (next == memory.begin()) return false;
  --next;
  return place < next->first + next->second;
}

/// Carries out the stream's copies up to the one with this number; false if there were none.
bool finish(void* stream, int64_t last = INT64_MAX) {
  std::deque<Copy>& copies = runtime().waiting[stream];
  bool any = false;
  for (; !copies.empty() && copies.front().number <= last; copies.pop_front(), any = true)
    std::memcpy(copies.front().to, copies.front().from, static_cast<size_t>(copies.front().bytes));
  return any;
}

bool finish_event(Event event) {
  const auto found = runtime().events.find(event);
  return found != runtime().events.end() && finish(found->second.first, found->second.second);
}

void finish_all() {
  for (auto& [stream, copies] : runtime().waiting) finish(stream);
}

/// host: which of the two is the host's.
void copy(void* to, const void* from, int64_t bytes, const void* host, Stream stream) {
  const Lock lock(runtime().mutex);
  if (page_locked(host)) {
    runtime().waiting[stream].push_back({++runtime().copies, to, from, bytes});
    return;
  }
  finish(stream);
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

}  // namespace

bool built_with_cuda() { return true; }
Availability availability() { return {{"emulator"}, ""}; }
void select(Device device) {
  LN_CHECK(device.type == DeviceType::kCUDA && device.index == 0,
           "the emulator has one GPU, cuda:0, and not {}", device_name(device));
}
MemoryInfo memory_info() {
  const Lock lock(runtime().mutex);
  return {runtime().capacity - runtime().used, runtime().capacity};
}

void* allocate(int64_t bytes) {
  const Lock lock(runtime().mutex);
  ++runtime().calls.allocations;
  if (bytes > runtime().capacity - runtime().used) return nullptr;
  void* data = take(bytes);
  if (data == nullptr) return nullptr;
  runtime().device_memory[data] = bytes;
  runtime().used += bytes;
  return data;
}
void free(void* data) noexcept {
  if (data == nullptr) return;
  const Lock lock(runtime().mutex);
  finish_all();
  runtime().used -= runtime().device_memory[data];
  runtime().device_memory.erase(data);
  std::free(data);
}
void* allocate_host(int64_t bytes) {
  const Lock lock(runtime().mutex);
  ++runtime().calls.host_allocations;
  void* data = take(bytes);
  if (data != nullptr) runtime().host_memory[static_cast<char*>(data)] = bytes;
  return data;
}
void free_host(void* data) noexcept {
  if (data == nullptr) return;
  const Lock lock(runtime().mutex);
  finish_all();
  runtime().host_memory.erase(static_cast<char*>(data));
  std::free(data);
}

void copy_to_device(void* device_data, const void* host_data, int64_t bytes, Stream stream) {
  copy(device_data, host_data, bytes, host_data, stream);
}
void copy_to_host(void* host_data, const void* device_data, int64_t bytes, Stream stream) {
  copy(host_data, device_data, bytes, host_data, stream);
}
void copy_on_device(void* out, const void* in, int64_t bytes, Stream stream) {
  simt::finish_copies(stream);
  std::memmove(out, in, static_cast<size_t>(bytes));
}
void fill_bytes(void* device_data, uint8_t value, int64_t bytes, Stream stream) {
  simt::finish_copies(stream);
  std::memset(device_data, value, static_cast<size_t>(bytes));
}

Stream make_stream(bool) {
  const Lock lock(runtime().mutex);
  ++runtime().calls.streams;
  return reinterpret_cast<Stream>(++runtime().names);
}
void destroy_stream(Stream stream) noexcept {
  const Lock lock(runtime().mutex);
  finish(stream);
  runtime().waiting.erase(stream);
}
/// True only when nothing had to be done: who asks too rarely sees it late.
bool finished(Stream stream) {
  const Lock lock(runtime().mutex);
  return !finish(stream);
}
void wait(Stream stream) {
  const Lock lock(runtime().mutex);
  finish(stream);
}

Event make_event() {
  const Lock lock(runtime().mutex);
  ++runtime().calls.events;
  return reinterpret_cast<Event>(++runtime().names);
}
void destroy_event(Event event) noexcept {
  const Lock lock(runtime().mutex);
  runtime().events.erase(event);
}
void record(Event event, Stream stream) {
  const Lock lock(runtime().mutex);
  runtime().events[event] = {stream, runtime().copies};
}
void wait_for(Stream, Event event) {
  const Lock lock(runtime().mutex);
  finish_event(event);
}
bool finished(Event event) {
  if (simt::bug == simt::kEarlyEvents) return true;
  const Lock lock(runtime().mutex);
  return !finish_event(event);
}
void wait(Event event) {
  if (simt::bug == simt::kEarlyEvents) return;
  const Lock lock(runtime().mutex);
  finish_event(event);
}

void range_push(const char*) noexcept {}
void range_pop() noexcept {}

}  // namespace device_runtime

namespace simt {

RuntimeCalls runtime_calls() {
  const std::lock_guard<std::mutex> lock(device_runtime::runtime().mutex);
  return device_runtime::runtime().calls;
}

Capacity::Capacity(int64_t bytes) {
  const std::lock_guard<std::mutex> lock(device_runtime::runtime().mutex);
  before_ = device_runtime::runtime().capacity;
  device_runtime::runtime().capacity = bytes;
}
Capacity::~Capacity() {
  const std::lock_guard<std::mutex> lock(device_runtime::runtime().mutex);
  device_runtime::runtime().capacity = before_;
}

void finish_copies(void* stream) {
  const std::lock_guard<std::mutex> lock(device_runtime::runtime().mutex);
  device_runtime::finish(stream);
}

}  // namespace simt
}  // namespace longnet
