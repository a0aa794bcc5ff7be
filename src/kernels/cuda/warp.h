// Sums and maxima over the lanes of a warp or of a quad: the same tree in any order of execution.
#pragma once

namespace longnet::cuda {

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

/// Sum and maximum over the four lanes of a quad (lane / 4), in each of them: a row of an mma's
/// result.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kFullWarp, x, 1);
  return x + __shfl_xor_sync(kFullWarp, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
}

}  // namespace longnet::cuda
