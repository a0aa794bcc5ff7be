// device_runtime.h on a machine without a GPU: device 0 of the emulator. Its memory is the host's
// and kernels run when they are launched. Copies between device and page-locked memory happen as
// late as they may: when a kernel or another operation on the same stream, or a wait for the stream
// or for an event behind them, needs them; so does what stream_work.h puts on a stream. So a host
// that writes over the source too early, or reads the target too early, gets wrong numbers here as
// on a GPU. Under mpirun every rank has a GPU of its own. Twins:
// src/core/device_runtime_cuda.cpp; the stub, which the programs of tests/simt do not link because
// this comes first.
#include "simt/device_runtime_emulated.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "core/device_runtime.h"
#include "simt/stream_work.h"

namespace longnet {
namespace simt {
extern int bug;
}

namespace device_runtime {
namespace {

/// A copy, or what simt::enqueue has put on a stream.
struct Work {
  int64_t number;                 // in order of issue, over all streams
  std::function<bool()> advance;  // true: it has ended
  bool copies;                    // always ends at once
};
/// The work of a stream up to a number.
struct Point {
  void* stream = nullptr;
  int64_t last = 0;
};

/// The stream and its last work before an event, and what the stream depended on.
struct Recorded {
  Point point;
  std::vector<Point> depends;
};

/// Everything there is of the device.
struct Runtime {
  std::mutex mutex;
  std::map<void*, int64_t> device_memory;       // bytes, by address
  std::map<const char*, int64_t> host_memory;   // page-locked
  std::map<void*, std::deque<Work>> waiting;    // of a stream, oldest first
  std::map<void*, std::vector<Point>> depends;  // of a stream, on work that does not end
  std::map<Event, Recorded> events;
  std::map<void*, int64_t> behind;  // of a stream: launches behind work that does not end
  int64_t capacity = int64_t{4} << 30, used = 0;
  int64_t issued = 0;    // pieces of work
  double patience = 60;  // seconds
  bool stuck = false;    // some work has outlasted it
  bool polls_advance = false;
  Event polled = nullptr;  // last, and how often in a row
  int polls = 0;
  int alone = 0;  // polls of one event since the last copy: the host does nothing else
  uintptr_t names = 0;
  simt::RuntimeCalls calls;
  simt::GpuKind kind;
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

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

enum class How { kWait, kTry, kCopiesOnly };

/// Carries out the stream's work up to the one with this number, as far as it goes; false if
/// nothing was done.
bool finish(void* stream, How how, int64_t last = INT64_MAX) {
  Runtime& r = runtime();
  std::deque<Work>& work = r.waiting[stream];
  bool any = false;
  for (double since = now(); !work.empty() && work.front().number <= last;) {
    if (!work.front().copies && (how == How::kCopiesOnly || r.stuck)) break;
    if (work.front().advance()) {
      work.pop_front();
      any = true;
      since = now();
    } else if (how == How::kTry) {
      break;
    } else if (now() - since > r.patience) {
      r.stuck = true;
    } else {
      std::this_thread::yield();
    }
  }
  return any;
}

bool ended(const Point& point) {
  const auto found = runtime().waiting.find(point.stream);
  return found == runtime().waiting.end() || found->second.empty() ||
         found->second.front().number > point.last;
}

Recorded recorded(Event event) {
  const auto found = runtime().events.find(event);
  return found == runtime().events.end() ? Recorded{} : found->second;
}

bool ended(const Recorded& event) {
  return ended(event.point) && std::all_of(event.depends.begin(), event.depends.end(),
                                           [](const Point& p) { return ended(p); });
}

bool finish_event(Event event, How how) {
  const Point point = recorded(event).point;
  return finish(point.stream, how, point.last);
}

/// What the stream depends on and has not ended.
std::vector<Point>& dependencies(void* stream) {
  std::vector<Point>& depends = runtime().depends[stream];
  std::erase_if(depends, [](const Point& p) { return ended(p); });
  return depends;
}

/// How many launches a stream takes before the host waits; CUDA's limit is about 1000.
int64_t places() {
  static const char* const text = std::getenv("LN_STREAM_PLACES");
  static const int64_t count = text == nullptr ? 1000 : std::atoll(text);
  return count;
}

void finish_all_copies() {
  for (auto& [stream, work] : runtime().waiting) finish(stream, How::kCopiesOnly);
}

/// host: which of the two is the host's.
void copy(void* to, const void* from, int64_t bytes, const void* host, Stream stream) {
  const Lock lock(runtime().mutex);
  runtime().alone = 0;
  if (page_locked(host)) {
    const auto carry_out = [to, from, bytes] {
      std::memcpy(to, from, static_cast<size_t>(bytes));
      return true;
    };
    runtime().waiting[stream].push_back({++runtime().issued, carry_out, true});
    return;
  }
  finish(stream, How::kWait);
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

}  // namespace

bool built_with_cuda() { return true; }
Availability availability() {
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  const Lock lock(runtime().mutex);
  const simt::GpuKind& kind = runtime().kind;
  return {{{rank == nullptr ? "emulator" : fmt::format("emulator of rank {}", rank), kind.name,
            kind.major, kind.minor}},
          ""};
}
void select(Device device) {
  LN_CHECK(device.type == DeviceType::kCUDA && device.index == 0,
           "the emulator has one GPU, cuda:0, and not {}", device_name(device));
}
MemoryInfo memory_info() {
  const Lock lock(runtime().mutex);
  return {runtime().capacity - runtime().used, runtime().capacity};
}

int64_t shared_memory_per_block() {
  const Lock lock(runtime().mutex);
  return runtime().kind.shared_bytes;
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
  finish_all_copies();
  runtime().used -= runtime().device_memory[data];
  runtime().device_memory.erase(data);
  std::free(data);
}
void* allocate_host(int64_t bytes) {
  const Lock lock(runtime().mutex);
  ++runtime().calls.host_allocations;
  void* data = take(bytes);
  if (data == nullptr) return nullptr;
  runtime().host_memory[static_cast<char*>(data)] = bytes;
  runtime().calls.host_bytes += bytes;
  return data;
}
void free_host(void* data) noexcept {
  if (data == nullptr) return;
  const Lock lock(runtime().mutex);
  finish_all_copies();
  const auto memory = runtime().host_memory.find(static_cast<char*>(data));
  runtime().calls.host_bytes -= memory->second;
  runtime().host_memory.erase(memory);
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
  finish(stream, How::kCopiesOnly);
  runtime().waiting.erase(stream);
  runtime().depends.erase(stream);
}
/// True only when nothing had to be done: who asks too rarely sees it late.
bool finished(Stream stream) {
  const Lock lock(runtime().mutex);
  if (finish(stream, How::kTry)) return false;
  return runtime().waiting[stream].empty() && dependencies(stream).empty();
}
void wait(Stream stream) {
  const Lock lock(runtime().mutex);
  finish(stream, How::kWait);
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
  runtime().events[event] = {{stream, runtime().issued}, dependencies(stream)};
}
void wait_for(Stream stream, Event event) {
  const Lock lock(runtime().mutex);
  const Recorded before = recorded(event);
  if (before.point.stream == stream) return;
  finish_event(event, How::kWait);
  std::vector<Point>& depends = dependencies(stream);
  if (!ended(before.point)) depends.push_back(before.point);
  for (const Point& point : before.depends)
    if (!ended(point)) depends.push_back(point);
}
bool finished(Event event) {
  if (simt::bug == simt::kEarlyEvents) return true;
  const Lock lock(runtime().mutex);
  // Who asks for nothing else waits: the device does not stand still then.
  constexpr int kWaits = 16;
  Runtime& r = runtime();
  r.polls = r.polled == event ? r.polls + 1 : 0;
  r.polled = event;
  r.alone = r.polls == 0 ? 0 : r.alone + 1;
  if (r.alone == kWaits) ++r.calls.waits;
  if ((r.polls_advance || r.polls > kWaits) && finish_event(event, How::kTry)) return false;
  return ended(recorded(event));
}
void wait(Event event) {
  if (simt::bug == simt::kEarlyEvents) return;
  const Lock lock(runtime().mutex);
  finish_event(event, How::kWait);
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

OtherGpu::OtherGpu(const GpuKind& kind) {
  const std::lock_guard<std::mutex> lock(device_runtime::runtime().mutex);
  before_ = std::exchange(device_runtime::runtime().kind, kind);
}
OtherGpu::~OtherGpu() {
  const std::lock_guard<std::mutex> lock(device_runtime::runtime().mutex);
  device_runtime::runtime().kind = before_;
}

void finish_copies(void* stream) {
  device_runtime::Runtime& r = device_runtime::runtime();
  const std::lock_guard<std::mutex> lock(r.mutex);
  device_runtime::finish(stream, device_runtime::How::kWait);
  int64_t& behind = r.behind[stream];
  behind = device_runtime::dependencies(stream).empty() ? 0 : behind + 1;
  // With CUDA the host would wait here, deaf to everything, and never come back.
  if (behind <= device_runtime::places()) return;
  std::fprintf(stderr, "the host waits for ever: %lld launches in a stream that does not go on\n",
               static_cast<long long>(behind));
  std::_Exit(9);
}

void enqueue(device_runtime::Stream stream, std::function<bool()> advance) {
  device_runtime::Runtime& r = device_runtime::runtime();
  const std::lock_guard<std::mutex> lock(r.mutex);
  r.waiting[stream].push_back({++r.issued, std::move(advance), false});
}
void drop_work(device_runtime::Stream stream) {
  device_runtime::Runtime& r = device_runtime::runtime();
  const std::lock_guard<std::mutex> lock(r.mutex);
  r.waiting.erase(stream);
  r.stuck = false;
}
double set_patience(double seconds) {
  return std::exchange(device_runtime::runtime().patience, seconds);
}
bool set_polls_advance(bool on) {
  return std::exchange(device_runtime::runtime().polls_advance, on);
}

}  // namespace simt
}  // namespace longnet
