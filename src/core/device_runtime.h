// Interface to the GPU runtime: memory, copies, streams, events, profiler ranges.
//
// All code outside CUDA sources uses a GPU through these functions only. Twins:
// device_runtime_cuda.cpp over the CUDA runtime; device_runtime_cuda_stub.cpp, where every function
// that needs a GPU throws a one-line Error (those marked "any build" do not). It owns no memory,
// does not wait implicitly and starts no kernels. Runtime errors become Error with statement,
// device and host.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

struct CUstream_st;  // what CUDA's cudaStream_t and cudaEvent_t point to
struct CUevent_st;

namespace longnet::device_runtime {

using Stream = CUstream_st*;
using Event = CUevent_st*;

struct VisibleDevice {
  std::string id;            // unique over all machines
  std::string name;          // as NVIDIA calls it
  int major = 0, minor = 0;  // compute capability
};
/// The GPUs that this process can see. Any build.
struct Availability {
  std::vector<VisibleDevice> devices;  // in index order; may be empty
  std::string reason;                  // why there is none; empty if there is one
};
/// True in a build with CUDA; says nothing about drivers or GPUs. Any build.
bool built_with_cuda();
/// Asks the driver; on failure `reason` says why. Any build.
Availability availability();

/// Makes `device` the calling thread's device; all functions below act on it.
void select(Device device);

/// Free and whole memory of the selected device, bytes.
struct MemoryInfo {
  int64_t free = 0, total = 0;
};
MemoryInfo memory_info();
/// Largest shared memory of a block on the selected device, bytes.
int64_t shared_memory_per_block();

/// `bytes` > 0 of uninitialised device memory, aligned to kAlignment; null if there is not enough.
void* allocate(int64_t bytes);
/// Waits for the device's work first. Null is allowed. Never throws.
void free(void* data) noexcept;
/// Page-locked host memory, for copies that run beside the host; null if there is not enough.
void* allocate_host(int64_t bytes);
void free_host(void* data) noexcept;

/// Copies and fills are ordered on the stream and return early; both memories must stay valid until
/// the stream has executed them. For pageable host memory CUDA may wait for the copy.
void copy_to_device(void* device_data, const void* host_data, int64_t bytes, Stream stream);
void copy_to_host(void* host_data, const void* device_data, int64_t bytes, Stream stream);
void copy_on_device(void* out, const void* in, int64_t bytes, Stream stream);
void fill_bytes(void* device_data, uint8_t value, int64_t bytes, Stream stream);

/// Streams never wait for the legacy default stream. urgent: high priority; its kernels are
/// scheduled before others.
Stream make_stream(bool urgent = false);
void destroy_stream(Stream stream) noexcept;
/// True when everything started on the stream has finished. Throws if the work failed.
bool finished(Stream stream);
/// Blocks the host until everything started on the stream has finished.
void wait(Stream stream);

/// Events order work; they measure no time.
Event make_event();
void destroy_event(Event event) noexcept;
/// The event now marks all work started on the stream so far.
void record(Event event, Stream stream);
/// Later work of the stream runs after the event; the host does not wait.
void wait_for(Stream stream, Event event);
bool finished(Event event);
void wait(Event event);

/// Named range of the host thread in profiler time lines (NVTX). Any build: nothing without CUDA.
void range_push(const char* name) noexcept;
void range_pop() noexcept;

/// Owners of the above.
struct StreamDeleter {
  void operator()(Stream stream) const noexcept { destroy_stream(stream); }
};
struct EventDeleter {
  void operator()(Event event) const noexcept { destroy_event(event); }
};
using OwnedStream = std::unique_ptr<CUstream_st, StreamDeleter>;
using OwnedEvent = std::unique_ptr<CUevent_st, EventDeleter>;

}  // namespace longnet::device_runtime
