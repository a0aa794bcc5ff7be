// What every kernel file includes: launch(), shared memory, copies from the device, warp helpers.
//
// Kernel files keep to what two worlds offer: nvcc, and the emulator of tests/simt that runs the
// same source without a GPU (LN_SIMT). So: no <<<>>>, no __shared__ variables, one trivial struct
// of dynamic shared memory per kernel, no grid-wide synchronisation, warp operations by whole
// warps.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "core/error.h"

// Defects, by number, where LN_BUG is compared in a kernel: always 0 in a device build; the tests
// of tests/simt turn them on one by one and expect to be told.
#if !defined(LN_BUG)
#define LN_BUG 0
#endif

#if !defined(LN_SIMT)
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "core/cuda_check.h"
#endif

namespace longnet::cuda {

/// Starts kernel on stream (a cudaStream_t). shared_bytes: dynamic shared memory of a block, bytes;
/// above 48 KiB the kernel's limit is raised first, and the SM asked to give all it can to shared
/// memory, so that a second block fits where it may. Does nothing if the grid is empty. A launch
/// that is refused is an Error as LN_CUDA's.
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
            Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#if defined(LN_SIMT)
  simt::finish_copies(stream);
  simt::launch(kernel, grid, block, shared_bytes, std::forward<Args>(args)...);
#else
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaError_t status = cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    status = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared_bytes));
    if (status == cudaSuccess)
      status = cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                    cudaSharedmemCarveoutMaxShared);
  }
  if (status == cudaSuccess) {
    std::tuple<std::decay_t<Params>...> values{std::forward<Args>(args)...};
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    std::apply(
        [&](auto&... value) {
          void* pointers[] = {static_cast<void*>(&value)...};
          status = cudaLaunchKernelExC(&config, function, pointers);
        },
        values);
  }
  if (status != cudaSuccess)
    internal::check_cuda(
        status,
        fmt::format("kernel of {} x {} x {} blocks of {} threads, {} bytes of shared memory,",
                    grid.x, grid.y, grid.z, block.x, shared_bytes)
            .c_str(),
        __FILE__, __LINE__);
#endif
}

/// Copies bytes of device memory into host memory and waits for stream.
inline void copy_to_host(void* to, const void* from, size_t bytes, void* stream) {
#if defined(LN_SIMT)
  simt::finish_copies(stream);
  std::memcpy(to, from, bytes);
#else
  LN_CUDA(
      cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)));
  LN_CUDA(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
#endif
}

/// The block's shared memory as the kernel's own struct; launched with sizeof(Smem) bytes or more.
#if defined(LN_SIMT)
template <typename Smem>
__device__ __forceinline__ Smem& shared(const char* file = __builtin_FILE(),
                                        int line = __builtin_LINE()) {
  static_assert(std::is_trivially_default_constructible_v<Smem> && alignof(Smem) <= 16);
  return *static_cast<Smem*>(simt::shared_memory(sizeof(Smem), file, line));
}
#else
template <typename Smem>
__device__ __forceinline__ Smem& shared() {
  static_assert(std::is_trivially_default_constructible_v<Smem> && alignof(Smem) <= 16);
  extern __shared__ __align__(16) unsigned char ln_shared_memory[];
  return *reinterpret_cast<Smem*>(ln_shared_memory);
}
#endif

inline constexpr unsigned kFullWarp = 0xffffffffu;

/// Sum and maximum over a whole warp, in every lane; the same tree in any order of execution.
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kFullWarp, x, step);
  return x;
}
/// A NaN in any lane gives NaN.
__device__ __forceinline__ float warp_max(float x) {
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(kFullWarp, x, step);
    x = x != x || x > other ? x : other;
  }
  return x;
}

/// bfloat16 bits to float and back, round to nearest even; NaN stays NaN.
__device__ __forceinline__ float bf16_to_float(uint16_t bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}
__device__ __forceinline__ uint16_t float_to_bf16(float x) {
#if defined(LN_SIMT)
  const unsigned bits = __float_as_uint(x);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#else
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
#endif
}

/// The same rounding on the host.
inline uint16_t float_to_bf16_host(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace longnet::cuda
