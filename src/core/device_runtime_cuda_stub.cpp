// device_runtime.h in a build without CUDA: it has no GPU and says so. Twin:
// device_runtime_cuda.cpp.
#include "core/device_runtime.h"

namespace longnet::device_runtime {
namespace {

constexpr const char* kReason =
    "built without CUDA: configure with the preset cuda (scripts/build.sh cuda) where the CUDA "
    "toolkit is installed";

[[noreturn]] void absent() { throw Error(std::string(kReason)); }

}  // namespace

bool built_with_cuda() { return false; }
Availability availability() { return {{}, kReason}; }
void select(Device) { absent(); }
MemoryInfo memory_info() { absent(); }
int64_t shared_memory_per_block() { absent(); }
void* allocate(int64_t) { absent(); }
void free(void*) noexcept {}
void* allocate_host(int64_t) { absent(); }
void free_host(void*) noexcept {}
void copy_to_device(void*, const void*, int64_t, Stream) { absent(); }
void copy_to_host(void*, const void*, int64_t, Stream) { absent(); }
void copy_on_device(void*, const void*, int64_t, Stream) { absent(); }
void fill_bytes(void*, uint8_t, int64_t, Stream) { absent(); }
Stream make_stream(bool) { absent(); }
void destroy_stream(Stream) noexcept {}
bool finished(Stream) { absent(); }
void wait(Stream) { absent(); }
Event make_event() { absent(); }
void destroy_event(Event) noexcept {}
void record(Event, Stream) { absent(); }
void wait_for(Stream, Event) { absent(); }
bool finished(Event) { absent(); }
void wait(Event) { absent(); }
void range_push(const char*) noexcept {}
void range_pop() noexcept {}

}  // namespace longnet::device_runtime
