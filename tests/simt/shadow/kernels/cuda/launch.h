// The emulator's twin of src/kernels/cuda/launch.h, which says what each function means.
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/error.h"

namespace longnet::cuda {

enum class Carveout { kDriver, kMostShared };

template <Carveout carveout = Carveout::kDriver, typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
            Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  simt::finish_copies(stream);
  simt::launch(kernel, grid, block, shared_bytes, std::forward<Args>(args)...);
}

inline void copy_to_host(void* to, const void* from, size_t bytes, void* stream) {
  simt::finish_copies(stream);
  std::memcpy(to, from, bytes);
}

template <typename Smem>
__device__ __forceinline__ Smem& shared(const char* file = __builtin_FILE(),
                                        int line = __builtin_LINE()) {
  static_assert(std::is_trivially_default_constructible_v<Smem> && alignof(Smem) <= 16);
  return *static_cast<Smem*>(simt::shared_memory(sizeof(Smem), file, line));
}

}  // namespace longnet::cuda
