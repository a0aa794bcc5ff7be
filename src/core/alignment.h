// What arenas and kernels ask of addresses: whole units of kAlignment, rows in pieces of 16 bytes.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace longnet {

/// The smallest multiple of kAlignment that holds so many bytes.
constexpr int64_t aligned_bytes(int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

/// True if every row (last axis) of the view begins at a multiple of `bytes`.
inline bool rows_aligned_to(int64_t bytes, const TensorView& view) {
  if (reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(bytes) != 0) return false;
  for (int axis = 0; axis + 1 < view.rank; ++axis)
    if (view.shape[axis] > 1 && view.stride[axis] * dtype_size(view.dtype) % bytes != 0)
      return false;
  return true;
}

}  // namespace longnet
