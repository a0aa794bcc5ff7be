// How kernels start and where their shared memory is: launch(), shared(), copy_to_host().
//
// Kernel files keep to what two worlds offer: nvcc, and an emulator that runs the same source
// without a GPU (tests/simt, whose launch.h and ptx.h come before these two on its include path).
// So: no <<<>>>, no __shared__ variables, one trivial struct of dynamic shared memory per kernel,
// no grid-wide synchronisation, warp operations by whole warps, instructions by name from ptx.h.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#include "core/cuda_check.h"
#include "core/error.h"

namespace longnet::cuda {

/// How an SM divides its memory between the L1 cache and shared memory for a kernel: as the driver
/// chooses, or all it can to shared memory, so that a second block fits where it may.
enum class Carveout { kDriver, kMostShared };

/// Starts kernel on stream (a cudaStream_t). shared_bytes: dynamic shared memory of a block, bytes;
/// above 48 KiB the kernel's limit is raised first. Does nothing if the grid is empty. A launch
/// that is refused is an Error as LN_CUDA's.
template <Carveout carveout = Carveout::kDriver, typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
            Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaError_t status = cudaSuccess;
  if (shared_bytes > 48 * 1024)
    status = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared_bytes));
  if (status == cudaSuccess && carveout == Carveout::kMostShared)
    status = cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared);
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
}

/// Copies bytes of device memory into host memory and waits for stream.
inline void copy_to_host(void* to, const void* from, size_t bytes, void* stream) {
  LN_CUDA(
      cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)));
  LN_CUDA(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)));
}

/// The block's shared memory as the kernel's own struct; launched with sizeof(Smem) bytes or more.
template <typename Smem>
__device__ __forceinline__ Smem& shared() {
  static_assert(std::is_trivially_default_constructible_v<Smem> && alignof(Smem) <= 16);
  extern __shared__ __align__(16) unsigned char ln_shared_memory[];
  return *reinterpret_cast<Smem*>(ln_shared_memory);
}

}  // namespace longnet::cuda
