// Packs: 1, 4 or 8 neighbouring elements of an f32 or bf16 tensor, moved as one access of up to 16
// bytes and held as floats. How kernels that only move and map memory read and write it.
//
// The type of each tensor is a branch at run time, the same for all threads: one kernel serves
// every mix of types. The size of a pack is a template parameter, which pack_of() chooses on the
// host from what the addresses, strides and widths of all tensors of a call allow.
#pragma once

#include <initializer_list>

#include "core/tensor.h"
#include "kernels/cuda/numbers.h"
#include "kernels/cuda/ptx.h"

namespace longnet::cuda {

/// f32 or bf16 memory.
struct Elements {
  void* data;
  bool half;  // bf16
};

inline Elements elements_of(const TensorView& view) {
  LN_CHECK(!view.defined() || view.dtype == DType::kF32 || view.dtype == DType::kBF16,
           "{}: allowed are f32 and bf16", view.describe());
  return {view.data, view.dtype == DType::kBF16};
}

/// v[j] = element offset + j.
template <int kPack>
__device__ __forceinline__ void load(float (&v)[kPack], const Elements& from, int64_t offset) {
  if (from.half) {
    const uint16_t* p = static_cast<const uint16_t*>(from.data) + offset;
    if constexpr (kPack == 1) {
      v[0] = bf16_to_float(p[0]);
    } else {
      unsigned words[kPack / 2];
      if constexpr (kPack == 4) {
        const uint2 raw = *reinterpret_cast<const uint2*>(p);
        words[0] = raw.x, words[1] = raw.y;
      } else {
        const uint4 raw = *reinterpret_cast<const uint4*>(p);
        words[0] = raw.x, words[1] = raw.y, words[2] = raw.z, words[3] = raw.w;
      }
#pragma unroll
      for (int j = 0; j < kPack / 2; ++j) {
        v[2 * j] = __uint_as_float(words[j] << 16);
        v[2 * j + 1] = __uint_as_float(words[j] & 0xffff0000u);
      }
    }
  } else {
    const float* p = static_cast<const float*>(from.data) + offset;
    if constexpr (kPack == 1) {
      v[0] = p[0];
    } else {
#pragma unroll
      for (int j = 0; j < kPack; j += 4) {
        const float4 raw = *reinterpret_cast<const float4*>(p + j);
        v[j] = raw.x, v[j + 1] = raw.y, v[j + 2] = raw.z, v[j + 3] = raw.w;
      }
    }
  }
}

/// Element offset + j = v[j], rounded to the type.
template <int kPack>
__device__ __forceinline__ void store(const Elements& to, int64_t offset, const float (&v)[kPack]) {
  if (to.half) {
    uint16_t* p = static_cast<uint16_t*>(to.data) + offset;
    if constexpr (kPack == 1) {
      p[0] = float_to_bf16(v[0]);
    } else {
      unsigned words[kPack / 2];
#pragma unroll
      for (int j = 0; j < kPack / 2; ++j)
        words[j] = static_cast<unsigned>(float_to_bf16(v[2 * j])) |
                   static_cast<unsigned>(float_to_bf16(v[2 * j + 1])) << 16;
      if constexpr (kPack == 4)
        *reinterpret_cast<uint2*>(p) = uint2{words[0], words[1]};
      else
        *reinterpret_cast<uint4*>(p) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  } else {
    float* p = static_cast<float*>(to.data) + offset;
    if constexpr (kPack == 1) {
      p[0] = v[0];
    } else {
#pragma unroll
      for (int j = 0; j < kPack; j += 4)
        *reinterpret_cast<float4*>(p + j) = make_float4(v[j], v[j + 1], v[j + 2], v[j + 3]);
    }
  }
}

/// v as a later load of what store() wrote gives it.
template <int kPack>
__device__ __forceinline__ void round_as(const Elements& to, float (&v)[kPack]) {
  if (!to.half) return;
#pragma unroll
  for (int j = 0; j < kPack; ++j) v[j] = bf16_to_float(float_to_bf16(v[j]));
}

/// The largest pack, 8 (only if every tensor is bf16), 4 or 1, in which every row of every view can
/// be moved: last axes contiguous and whole packs long, all rows aligned. Undefined views pass.
/// whole_rows = false: a row's tail is the kernel's business, only alignment counts.
inline int pack_of(std::initializer_list<TensorView> views, bool whole_rows = true) {
  int pack = 8;
  for (const TensorView& view : views) {
    if (!view.defined()) continue;
    const int64_t size = dtype_size(view.dtype);
    if (view.dtype != DType::kBF16) pack = pack < 4 ? pack : 4;
    const auto fits = [&](int64_t elements) {
      if (reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(elements * size) != 0)
        return false;
      for (int axis = 0; axis + 1 < view.rank; ++axis)
        if (view.shape[axis] > 1 && view.stride[axis] % elements != 0) return false;
      return !whole_rows || view.shape[view.rank - 1] % elements == 0;
    };
    if (pack == 8 && !fits(8)) pack = 4;
    if (pack == 4 && !fits(4)) pack = 1;
  }
  return pack;
}

/// f(std::integral_constant<int, pack>).
template <typename F>
void with_pack(int pack, F f) {
  if (pack == 8)
    f(std::integral_constant<int, 8>{});
  else if (pack == 4)
    f(std::integral_constant<int, 4>{});
  else
    f(std::integral_constant<int, 1>{});
}

/// Blocks for count items, per_block of them each.
inline unsigned blocks_for(int64_t count, int64_t per_block) {
  const int64_t blocks = (count + per_block - 1) / per_block;
  LN_CHECK(blocks <= INT32_MAX, "{} blocks in one launch", blocks);
  return static_cast<unsigned>(blocks);
}
/// The same for kernels that go on in strides of the grid: enough to fill any GPU several times.
inline unsigned grid_stride_blocks(int64_t count, int64_t per_block) {
  return static_cast<unsigned>(
      std::min<int64_t>((count + per_block - 1) / per_block, int64_t{1} << 16));
}

}  // namespace longnet::cuda
