// Device code that the native forward and backward share: tiles of bf16 rows in shared memory,
// filled by cp.async, read as fragments of mma.m16n8k16 (kernels/cuda/ptx.h has their layouts).
//
// A row is kD / 8 pieces of 16 bytes. Piece p of row r lies in place swizzled(r, p), so that the
// eight rows an 8 x 8 matrix is loaded from lie in different banks; places depend on r % 8 only.
// Fragments are of blocks that begin at multiples of 16 rows and 16 columns.
#pragma once

#include "kernels/attention/attention_tables_cuda.h"
#include "kernels/cuda/ptx.h"

namespace longnet::cuda::attention {

/// Pieces are exchanged inside groups of so many: the largest power of two that divides their
/// number, at most the 8 that the banks hold side by side.
template <int kD>
constexpr int kGroup = kD % 64 == 0   ? 8
                       : kD % 32 == 0 ? 4
                                      : 2;

/// The same for rows 8 apart.
template <int kD>
__host__ __device__ __forceinline__ constexpr int swizzled(int row, int piece) {
  static_assert(kD == 32 || kD == 64 || kD == 80 || kD == 96 || kD == 128);
  return piece ^ (kGroup<kD> == 8 ? row & 7 : kGroup<kD> == 4 ? row >> 1 & 3 : row >> 2 & 1);
}

template <int kRows, int kD>
struct Tile {
  alignas(16) uint16_t data[kRows * kD];

  __device__ __forceinline__ uint16_t* at(int row, int piece) {
    return data + row * kD + swizzled<kD>(row, piece) * 8;
  }
  __device__ __forceinline__ const uint16_t* at(int row, int piece) const {
    return data + row * kD + swizzled<kD>(row, piece) * 8;
  }
};

// --- 1. filling

/// Starts copies of rows [0, count), zeros behind; the caller commits. All kThreads threads, each
/// with its number.
template <int kThreads, int kRows, int kD>
__device__ __forceinline__ void load_async(Tile<kRows, kD>& tile, const uint16_t* rows,
                                           int64_t stride, int count,
                                           unsigned thread = threadIdx.x) {
  // Neighbours copy neighbouring pieces of a row: a group, or as many as give all threads work. A
  // thread keeps its place in groups and in rows modulo 8, so that its copies are constant
  // distances apart.
  constexpr int kAcross = kGroup<kD> * kRows >= kThreads ? kGroup<kD> : kThreads / kRows;
  constexpr int kRowStep = kThreads / kAcross;
  static_assert(kAcross % kGroup<kD> == 0 && kRowStep % 8 == 0 && kRows % kRowStep == 0);
  const int row = static_cast<int>(thread) / kAcross, piece = static_cast<int>(thread) % kAcross;
  const SharedAddress to = shared_address(tile.at(row, piece));
  const uint16_t* from = rows + row * stride + piece * 8;
#pragma unroll
  for (int i = 0; i < kRows; i += kRowStep) {
#pragma unroll
    for (int k = 0; k < kD; k += 8 * kAcross)
      if (k + 8 * kAcross <= kD || 8 * piece < kD - k)
        copy_async_16(to + 2 * (i * kD + k), from + k, row + i < count);
    from += kRowStep * stride;
  }
}

/// The same, rotated on the way (rounded to bf16 once), by ordinary stores. Row i has position
/// `position` + i dilation.
template <int kThreads, int kRows, int kD>
__device__ __forceinline__ void load_rotated(Tile<kRows, kD>& tile, const uint16_t* rows,
                                             int64_t stride, int count, const RotaryParts& rotary,
                                             int set, int64_t position, int64_t dilation) {
  constexpr int kPieces = kD / 8, kTogether = 2;  // pieces whose loads a thread has under way
  static_assert(kRows * kPieces % (kTogether * kThreads) == 0);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kPieces; i += kTogether * kThreads) {
    uint4 v[kTogether];
    float2 turn[kTogether][4];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int row = (i + j * kThreads) / kPieces, piece = (i + j * kThreads) % kPieces;
      const int from =
          row < count ? row : count - 1;  // of a row there is, whether it is needed or not
      v[j] = *reinterpret_cast<const uint4*>(rows + from * stride + piece * 8);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        turn[j][k] = turn_of(rotary, set, position + from * dilation, piece * 4 + k);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int row = (i + j * kThreads) / kPieces, piece = (i + j * kThreads) % kPieces;
      unsigned word[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float a = __uint_as_float(word[k] << 16), c = __uint_as_float(word[k] & 0xffff0000u);
        const float2 t = turn[j][k];
        word[k] = row < count ? pack_bf16(a * t.x - c * t.y, c * t.x + a * t.y) : 0;
      }
      *reinterpret_cast<uint4*>(tile.at(row, piece)) =
          make_uint4(word[0], word[1], word[2], word[3]);
    }
  }
}

// --- 2. fragments; whole warp

/// Reads fragments of one tile. Blocks are 16 x 16: rows [row, + 16) and columns [8 piece, + 16)
/// from first_row and first_piece of the tile on. row and piece are constants, multiples of 8 and
/// of 2, piece below kColumns / 8; first_row and first_piece likewise, but need be no constants.
///   kRowsFirst   registers 0, 1: rows 0-7 and 8-15 of columns 0-7; 2, 3: the same of columns 8-15.
///                a()            A = block
///                b_transposed() two B, [k, n] = tile row k, column n: registers 0, 1 of columns
///                               0-7 as n, 2, 3 of columns 8-15. For C = A tile
///   kColumnsFirst registers 0, 1: columns 0-7 and 8-15 of rows 0-7; 2, 3: the same of rows 8-15.
///                b()            two B, [k, n] = tile row n, column k: registers 0, 1 of rows 0-7
///                               as n, 2, 3 of rows 8-15. For C = A tile^T
///                a_transposed() A = the block's transpose
enum class BlockOrder { kRowsFirst, kColumnsFirst };

template <int kD, BlockOrder kOrder, int kColumns = kD>
class TileReader {
 public:
  template <int kRows>
  __device__ __forceinline__ explicit TileReader(const Tile<kRows, kD>& tile, int first_row = 0,
                                                 int first_piece = 0,
                                                 unsigned thread = threadIdx.x) {
    const int lane = static_cast<int>(thread % 32);
    const int low = lane / 8 % 2, high = lane / 16;
    const int row = lane % 8 + 8 * (kOrder == BlockOrder::kRowsFirst ? low : high);
    const int piece = kOrder == BlockOrder::kRowsFirst ? high : low;
#pragma unroll
    for (int k = 0; k < kKept; ++k)
      column_[k] = shared_address(tile.at(first_row + row, first_piece + piece + 2 * k));
  }

  __device__ __forceinline__ void a(uint32_t (&a)[4], int row, int piece) const {
    static_assert(kOrder == BlockOrder::kRowsFirst);
    load_matrix<false>(a, at(row, piece));
  }
  __device__ __forceinline__ void b_transposed(uint32_t (&b)[4], int row, int piece) const {
    static_assert(kOrder == BlockOrder::kRowsFirst);
    load_matrix<true>(b, at(row, piece));
  }
  __device__ __forceinline__ void b(uint32_t (&b)[4], int row, int piece) const {
    static_assert(kOrder == BlockOrder::kColumnsFirst);
    load_matrix<false>(b, at(row, piece));
  }
  __device__ __forceinline__ void a_transposed(uint32_t (&a)[4], int row, int piece) const {
    static_assert(kOrder == BlockOrder::kColumnsFirst);
    load_matrix<true>(a, at(row, piece));
  }

  /// a() the other way; only where has_store_matrix().
  __device__ __forceinline__ void store(int row, int piece, const uint32_t (&a)[4]) const {
    static_assert(kOrder == BlockOrder::kRowsFirst);
    store_matrix(at(row, piece), a);
  }

 private:
  __device__ __forceinline__ SharedAddress at(int row, int piece) const {
    return column_[piece % kGroup<kD> / 2] + 2 * (row * kD + piece / kGroup<kD> * kGroup<kD> * 8);
  }
  // Of the pieces of one group, as far as there are columns: the distances of all others from one
  // of these are the same for all lanes.
  static constexpr int kKept = kColumns < 8 * kGroup<kD> ? kColumns / 16 : kGroup<kD> / 2;
  SharedAddress column_[kKept];
};

/// Writes blocks of a tile from first_row on, each as TileReader::a() reads it.
template <int kD>
class TileWriter {
 public:
  template <int kRows>
  __device__ __forceinline__ TileWriter(Tile<kRows, kD>& tile, int first_row, unsigned thread)
      : blocks_(tile, first_row, 0, thread),
        pair_(tile.data + (first_row + static_cast<int>(thread) % 32 / 4) * kD + thread % 4 * 2),
        exchange_(swizzled<kD>(static_cast<int>(thread) % 32 / 4, 0) * 8) {}
  __device__ __forceinline__ void store(int row, int piece, const uint32_t (&a)[4]) const {
    if (has_store_matrix()) {
      blocks_.store(row, piece, a);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        *reinterpret_cast<uint32_t*>(pair_ + (row + i % 2 * 8) * kD +
                                     ((8 * (piece + i / 2)) ^ exchange_)) = a[i];
    }
  }

 private:
  TileReader<kD, BlockOrder::kRowsFirst> blocks_;
  uint16_t* pair_;  // the lane's columns of its first row, pieces not exchanged
  int exchange_;
};

template <int kD, int kColumns = kD>
using RowsReader = TileReader<kD, BlockOrder::kRowsFirst, kColumns>;
template <int kD, int kColumns = kD>
using ColumnsReader = TileReader<kD, BlockOrder::kColumnsFirst, kColumns>;

/// Two neighbouring C, columns [0, 8) and [8, 16), rounded to bf16 as one A.
__device__ __forceinline__ void a_of_c(uint32_t (&a)[4], const float (&left)[4],
                                       const float (&right)[4]) {
  a[0] = pack_bf16(left[0], left[1]);
  a[1] = pack_bf16(left[2], left[3]);
  a[2] = pack_bf16(right[0], right[1]);
  a[3] = pack_bf16(right[2], right[3]);
}

// --- 3. scores in powers of two

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

}  // namespace longnet::cuda::attention
