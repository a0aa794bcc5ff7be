// Device code that the native forward and backward share: tiles of bf16 rows in shared memory,
// filled by cp.async, read as fragments of mma.m16n8k16 (kernels/cuda/mma.h has their layouts).
//
// A row is kD / 8 pieces of 16 bytes. Piece p of row r lies in place swizzled(r, p), so that the
// eight rows an 8 x 8 matrix is loaded from lie in different banks; places depend on r % 8 only.
// Fragments are of blocks that begin at multiples of 16 rows and 16 columns.
#pragma once

#include "kernels/attention/attention_tables_cuda.h"
#include "kernels/cuda/mma.h"

namespace longnet::cuda::attention {

/// A row of kD bf16 is 4 kD / 8 banks wide: rows r and r + 1 begin kD / 8 pieces apart, of 8 that
/// the banks hold. The exchange spreads what that leaves together.
template <int kD>
__device__ __forceinline__ constexpr int swizzled(int row, int piece) {
  static_assert(kD == 32 || kD == 64 || kD == 80 || kD == 96 || kD == 128);
  if constexpr (kD == 80) return piece ^ (row >> 2 & 1);
  if constexpr (kD == 96 || kD == 32) return piece ^ (row >> 1 & 3);
  return piece ^ (row & 7);
}

template <int kRows, int kD>
struct Tile {
  static constexpr int kPieces = kD / 8;
  alignas(16) uint16_t data[kRows * kD];

  __device__ __forceinline__ uint16_t* at(int row, int piece) {
    return data + row * kD + swizzled<kD>(row, piece) * 8;
  }
  __device__ __forceinline__ const uint16_t* at(int row, int piece) const {
    return data + row * kD + swizzled<kD>(row, piece) * 8;
  }
};

// --- 1. filling

/// Starts copies of rows [0, count), zeros behind; the caller commits. All kThreads threads.
template <int kThreads, int kRows, int kD>
__device__ __forceinline__ void load_async(Tile<kRows, kD>& tile, const uint16_t* rows,
                                           int64_t stride, int count) {
  constexpr int kPieces = kD / 8, kCopies = kRows * kPieces / kThreads;
  static_assert(kRows * kPieces % kThreads == 0);
#pragma unroll
  for (int k = 0; k < kCopies; ++k) {
    const int i = static_cast<int>(threadIdx.x) + k * kThreads;
    const int row = i / kPieces, piece = i % kPieces;
    copy_async_16(tile.at(row, piece), row < count ? rows + row * stride + piece * 8 : nullptr);
  }
}

/// The same, rotated on the way (rounded to bf16 once), by ordinary stores. Row i has position
/// `position` + i dilation.
template <int kThreads, int kRows, int kD>
__device__ __forceinline__ void load_rotated(Tile<kRows, kD>& tile, const uint16_t* rows,
                                             int64_t stride, int count, const RotaryParts& rotary,
                                             int set, int64_t position, int64_t dilation) {
  constexpr int kPieces = kD / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (row < count) {
      v = *reinterpret_cast<const uint4*>(rows + row * stride + piece * 8);
      unsigned word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float a = __uint_as_float(word[k] << 16), c = __uint_as_float(word[k] & 0xffff0000u);
        const float2 turn = turn_of(rotary, set, position + row * dilation, piece * 4 + k);
        word[k] = pack_bf16(a * turn.x - c * turn.y, c * turn.x + a * turn.y);
      }
      v = make_uint4(word[0], word[1], word[2], word[3]);
    }
    *reinterpret_cast<uint4*>(tile.at(row, piece)) = v;
  }
}

// --- 2. fragments; whole warp

/// A = tile rows [row, + 16), columns [8 piece, + 16).
template <int kRows, int kD>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const Tile<kRows, kD>& tile, int row,
                                       int piece) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  load_matrix<false>(a, tile.at(row + lane % 16, piece + lane / 16));
}
/// A = the transpose of tile rows [row, + 16) (A's columns), columns [8 piece, + 16) (A's rows).
template <int kRows, int kD>
__device__ __forceinline__ void load_a_transposed(uint32_t (&a)[4], const Tile<kRows, kD>& tile,
                                                  int row, int piece) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  load_matrix<true>(a, tile.at(row + lane % 8 + lane / 16 * 8, piece + lane / 8 % 2));
}
/// Two neighbouring B, [k, n] = tile row n, column k: registers 0, 1 of rows [row, + 8) as n,
/// 2, 3 of rows [row + 8, + 8); columns [8 piece, + 16) as k. For C = A tile^T.
template <int kRows, int kD>
__device__ __forceinline__ void load_b(uint32_t (&b)[4], const Tile<kRows, kD>& tile, int row,
                                       int piece) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  load_matrix<false>(b, tile.at(row + lane % 8 + lane / 16 * 8, piece + lane / 8 % 2));
}
/// Two neighbouring B, [k, n] = tile row k, column n: rows [row, + 16) as k; registers 0, 1 of
/// columns [8 piece, + 8) as n, 2, 3 of columns [8 piece + 8, + 8). For C = A tile.
template <int kRows, int kD>
__device__ __forceinline__ void load_b_transposed(uint32_t (&b)[4], const Tile<kRows, kD>& tile,
                                                  int row, int piece) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  load_matrix<true>(b, tile.at(row + lane % 16, piece + lane / 16));
}
/// Two neighbouring C, columns [0, 8) and [8, 16), rounded to bf16 as one A.
__device__ __forceinline__ void a_of_c(uint32_t (&a)[4], const float (&left)[4],
                                       const float (&right)[4]) {
  a[0] = pack_bf16(left[0], left[1]);
  a[1] = pack_bf16(left[2], left[3]);
  a[2] = pack_bf16(right[0], right[1]);
  a[3] = pack_bf16(right[2], right[3]);
}

// --- 3. rows of fragments: the four lanes of a quad hold the columns of rows lane / 4 and + 8

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kFullWarp, x, 1);
  return x + __shfl_xor_sync(kFullWarp, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
}

/// 2^x within 2 units of the last place; results below 2^-126 are 0.
__device__ __forceinline__ float fast_exp2(float x) {
#if defined(LN_SIMT)
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
#endif
}

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

}  // namespace longnet::cuda::attention
