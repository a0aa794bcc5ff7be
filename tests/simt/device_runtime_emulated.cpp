// device_runtime.h on a machine without a GPU: device 0 of the emulator. Its memory is the host's,
// streams and events are names, and everything is finished when the call returns, except what
// stream_work.h puts on a stream. Under mpirun every rank has a GPU of its own. Twins:
// src/core/device_runtime_cuda.cpp; the stub, which the programs of tests/simt do not link because
// this comes first.
#include "core/device_runtime.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <thread>

#include "simt/stream_work.h"

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

/// A point in the work of a stream: everything up to piece `place`.
struct Point {
  Stream stream = nullptr;
  int64_t place = 0;
};
/// What a stream has to do: work of its own, and another stream's that it waits for in vain.
struct Queue {
  std::deque<std::function<bool()>> pending;
  int64_t ended = 0;  // pieces of work
  bool stuck = false;
  std::vector<Point> waits;
  int64_t all() const { return ended + static_cast<int64_t>(pending.size()); }
};

std::map<Stream, Queue> queues;  // of streams with work
std::map<Event, Point> events;   // recorded behind work
double patience = 60;
bool polls_advance = false;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// One attempt at the stream's next piece of work.
bool advance(Queue& queue) {
  if (queue.stuck || queue.pending.empty() || !queue.pending.front()()) return false;
  queue.pending.pop_front();
  ++queue.ended;
  return true;
}

bool ended(const Point& point) {
  const auto found = queues.find(point.stream);
  return found == queues.end() || found->second.ended >= point.place;
}

void reach(const Point& point) {
  const auto found = queues.find(point.stream);
  if (found == queues.end()) return;
  Queue& queue = found->second;
  for (double since = now(); queue.ended < point.place && !queue.stuck;) {
    if (advance(queue)) {
      since = now();
    } else if (now() - since > patience) {
      queue.stuck = true;
    } else {
      std::this_thread::yield();
    }
  }
}

/// Everything on the stream so far.
Point end_of(Stream stream) {
  const auto found = queues.find(stream);
  return {stream, found == queues.end() ? 0 : found->second.all()};
}

}  // namespace
}  // namespace longnet::device_runtime

namespace longnet::simt {

using namespace device_runtime;

void enqueue(Stream stream, std::function<bool()> advance) {
  queues[stream].pending.push_back(std::move(advance));
}
void reach(void* stream) { device_runtime::reach(end_of(static_cast<Stream>(stream))); }
void drop_work(Stream stream) {
  const auto found = queues.find(stream);
  if (found == queues.end()) return;
  found->second.ended = found->second.all();
  found->second.pending.clear();
  found->second.stuck = false;
}
double set_patience(double seconds) { return std::exchange(patience, seconds); }
bool set_polls_advance(bool on) { return std::exchange(polls_advance, on); }

}  // namespace longnet::simt

namespace longnet::device_runtime {

bool built_with_cuda() { return true; }
Availability availability() {
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  return {{rank == nullptr ? "emulator" : fmt::format("emulator of rank {}", rank)}, ""};
}
void select(Device device) {
  LN_CHECK(device.type == DeviceType::kCUDA && device.index == 0,
           "the emulator has one GPU, cuda:0, and not {}", device_name(device));
}
MemoryInfo memory_info() { return {int64_t{1} << 32, int64_t{1} << 32}; }

void* allocate(int64_t bytes) { return take(bytes); }
void free(void* data) noexcept { std::free(data); }
void* allocate_host(int64_t bytes) { return take(bytes); }
void free_host(void* data) noexcept { std::free(data); }

void copy_to_device(void* device_data, const void* host_data, int64_t bytes, Stream stream) {
  simt::reach(stream);
  std::memcpy(device_data, host_data, static_cast<size_t>(bytes));
}
void copy_to_host(void* host_data, const void* device_data, int64_t bytes, Stream stream) {
  simt::reach(stream);
  std::memcpy(host_data, device_data, static_cast<size_t>(bytes));
}
void copy_on_device(void* out, const void* in, int64_t bytes, Stream stream) {
  simt::reach(stream);
  std::memmove(out, in, static_cast<size_t>(bytes));
}
void fill_bytes(void* device_data, uint8_t value, int64_t bytes, Stream stream) {
  simt::reach(stream);
  std::memset(device_data, value, static_cast<size_t>(bytes));
}

Stream make_stream(bool) { return next_name<Stream>(); }
void destroy_stream(Stream stream) noexcept { queues.erase(stream); }
bool finished(Stream stream) {
  const auto found = queues.find(stream);
  if (found == queues.end()) return true;
  advance(found->second);
  std::erase_if(found->second.waits, ended);
  return found->second.pending.empty() && found->second.waits.empty();
}
void wait(Stream stream) {
  simt::reach(stream);
  while (!finished(stream)) std::this_thread::yield();
}

Event make_event() { return next_name<Event>(); }
void destroy_event(Event event) noexcept { events.erase(event); }
void record(Event event, Stream stream) {
  events[event] = end_of(stream);
}
/// The last moment at which the event's work may run: whatever the stream does next is behind it.
void wait_for(Stream stream, Event event) {
  const Point point = events[event];
  if (point.stream == stream) return;
  reach(point);
  if (!ended(point)) queues[stream].waits.push_back(point);
}
bool finished(Event event) {
  const Point point = events[event];
  const auto found = queues.find(point.stream);
  if (polls_advance && found != queues.end()) advance(found->second);
  return ended(point);
}
void wait(Event event) {
  const Point point = events[event];
  reach(point);
  while (!ended(point)) std::this_thread::yield();
}

void range_push(const char*) noexcept {}
void range_pop() noexcept {}

}  // namespace longnet::device_runtime
