// device_runtime.h over the CUDA runtime. Twin: device_runtime_cuda_stub.cpp.
//
// The runtime library looks for the driver at its first call, so a program that links it also
// starts on a machine without a driver; availability() then gives the reason. The driver's library
// is not linked. This source has been compiled and linked on machines without a GPU; only
// availability() has run.
#include <nvtx3/nvToolsExt.h>

#include <cstring>

#include "core/cuda_check.h"
#include "core/device_runtime.h"
#include "core/system.h"

namespace longnet {
namespace internal {

void check_cuda(cudaError_t code, const char* call, const char* file, int line) {
  if (code == cudaSuccess) return;
  cudaGetLastError();
  int device = -1;
  const bool known = cudaGetDevice(&device) == cudaSuccess;
  const char* tail = std::strstr(file, "src/");
  throw Error("GPU {} on {}: {} failed: {} ({}; {}:{})",
              known ? fmt::format("{}", device) : std::string("?"), host_name(), call,
              cudaGetErrorString(code), cudaGetErrorName(code), tail ? tail : file, line);
}

}  // namespace internal

namespace device_runtime {
namespace {

std::string version_text(int version) {  // 13000 -> "13.0"
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string reason_of(cudaError_t code) {
  int driver = 0;
  if (code == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess) {
    if (driver == 0) return "no NVIDIA driver is loaded";
    return fmt::format("the NVIDIA driver is too old: it offers CUDA {}, this program needs {}",
                       version_text(driver), version_text(CUDART_VERSION));
  }
  return fmt::format("{} ({})", cudaGetErrorString(code), cudaGetErrorName(code));
}

VisibleDevice visible_device(const cudaDeviceProp& properties) {
  VisibleDevice device{"", properties.name, properties.major, properties.minor};
  for (const char byte : properties.uuid.bytes)
    device.id += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return device;
}

void* null_if_out_of_memory(cudaError_t code, void* data, const char* call) {
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  internal::check_cuda(code, call, __FILE__, __LINE__);
  return data;
}

size_t checked_size(int64_t bytes) {
  LN_CHECK(bytes >= 0, "{} bytes", bytes);
  return static_cast<size_t>(bytes);
}

}  // namespace

bool built_with_cuda() { return true; }

Availability availability() {
  const auto none = [](cudaError_t code) -> Availability {
    cudaGetLastError();
    return {{}, reason_of(code)};
  };
  int count = 0;
  if (const cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess) return none(code);
  Availability result;
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties;
    const cudaError_t code = cudaGetDeviceProperties(&properties, index);
    if (code != cudaSuccess) return none(code);
    result.devices.push_back(visible_device(properties));
  }
  if (count == 0) result.reason = "the driver shows no GPU (is CUDA_VISIBLE_DEVICES empty?)";
  return result;
}

void select(Device device) {
  LN_CHECK(device.type == DeviceType::kCUDA, "the device is no GPU");
  LN_CUDA(cudaSetDevice(device.index));
}

MemoryInfo memory_info() {
  size_t free_bytes = 0, total_bytes = 0;
  LN_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
  return {static_cast<int64_t>(free_bytes), static_cast<int64_t>(total_bytes)};
}

int64_t shared_memory_per_block() {
  int device = 0, bytes = 0;
  LN_CUDA(cudaGetDevice(&device));
  LN_CUDA(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

void* allocate(int64_t bytes) {
  void* data = nullptr;
  const cudaError_t code = cudaMalloc(&data, checked_size(bytes));
  return null_if_out_of_memory(code, data, "cudaMalloc");
}

void free(void* data) noexcept { cudaFree(data); }

void* allocate_host(int64_t bytes) {
  void* data = nullptr;
  const cudaError_t code = cudaMallocHost(&data, checked_size(bytes));
  return null_if_out_of_memory(code, data, "cudaMallocHost");
}

void free_host(void* data) noexcept { cudaFreeHost(data); }

void copy_to_device(void* device_data, const void* host_data, int64_t bytes, Stream stream) {
  LN_CUDA(
      cudaMemcpyAsync(device_data, host_data, checked_size(bytes), cudaMemcpyHostToDevice, stream));
}

void copy_to_host(void* host_data, const void* device_data, int64_t bytes, Stream stream) {
  LN_CUDA(
      cudaMemcpyAsync(host_data, device_data, checked_size(bytes), cudaMemcpyDeviceToHost, stream));
}

void copy_on_device(void* out, const void* in, int64_t bytes, Stream stream) {
  LN_CUDA(cudaMemcpyAsync(out, in, checked_size(bytes), cudaMemcpyDeviceToDevice, stream));
}

void fill_bytes(void* device_data, uint8_t value, int64_t bytes, Stream stream) {
  LN_CUDA(cudaMemsetAsync(device_data, value, checked_size(bytes), stream));
}

Stream make_stream(bool urgent) {
  int least = 0, greatest = 0;  // lower numbers are served first
  LN_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  Stream stream = nullptr;
  LN_CUDA(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, urgent ? greatest : least));
  return stream;
}

void destroy_stream(Stream stream) noexcept {
  if (stream != nullptr) cudaStreamDestroy(stream);
}

bool finished(Stream stream) {
  const cudaError_t code = cudaStreamQuery(stream);
  if (code == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  internal::check_cuda(code, "work on a stream", __FILE__, __LINE__);
  return true;
}

void wait(Stream stream) { LN_CUDA(cudaStreamSynchronize(stream)); }

Event make_event() {
  Event event = nullptr;
  LN_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return event;
}

void destroy_event(Event event) noexcept {
  if (event != nullptr) cudaEventDestroy(event);
}

void record(Event event, Stream stream) { LN_CUDA(cudaEventRecord(event, stream)); }

void wait_for(Stream stream, Event event) { LN_CUDA(cudaStreamWaitEvent(stream, event, 0)); }

bool finished(Event event) {
  const cudaError_t code = cudaEventQuery(event);
  if (code == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  internal::check_cuda(code, "work before an event", __FILE__, __LINE__);
  return true;
}

void wait(Event event) { LN_CUDA(cudaEventSynchronize(event)); }

void range_push(const char* name) noexcept { nvtxRangePushA(name); }
void range_pop() noexcept { nvtxRangePop(); }

}  // namespace device_runtime
}  // namespace longnet
