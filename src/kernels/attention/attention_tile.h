// The inner tiles of CPU attention: 64 queries in vector lanes against packed key rows.
//
// Plain structs and function pointers only: the sources attention_tile_{generic,avx2,avx512}.cpp
// compile the same attention_tile.inc for one instruction set each, and nothing here may become
// shared inline code. Layouts: "rows" is [row, Dp], "lanes" is [Dp, 64] (the transposed tile), Dp =
// D padded with zeros to one of kPaddedDims. All pointers are 64-byte aligned. Scores are in units
// of log 2: queries are multiplied by scale log2(e) beforehand. No positions, strides or threads
// here.
#pragma once

#include <cstdint>

namespace longnet::attention {

constexpr int kTileQueries = 64;  // queries of a tile: 4 AVX-512 registers
constexpr int kTileKeys = 48;     // keys of a block: scores of 64 x 48 take 12 KiB of L1
constexpr int kTileRows = 6;      // rows of a register tile, 6 x 4; key rows are padded to this
constexpr int kPaddedDims[] = {16, 32, 48, 64, 80, 96, 128, 192, 256};

/// The keys of a packed chunk that the queries of a tile see: query i sees rows first[i] ..
/// last[i].
struct TileMask {
  const int32_t* first;  // [64]; lanes without a query repeat the last query's
  const int32_t* last;   // [64]
  int32_t begin;         // min(first), rounded down to kTileRows
  int32_t end;           // max(last) + 1
  int32_t full_begin;    // rows full_begin .. full_end - 1 are seen by every query
  int32_t full_end;
};

/// Rows that the next tile will read: prefetched between key blocks, a few at a time, so that their
/// latency hides behind the arithmetic.
struct AheadRows {
  const char* first[2];  // first row of the queries and of the outputs
  int64_t step[2];       // bytes from row to row
  int32_t rows;          // 0: none
  int32_t row_bytes[2];
};

struct ForwardTile {
  const float* query;  // lanes
  const float* key;    // rows
  const float* value;  // rows
  float* out;          // lanes, sum of weights times values, in units of 2^peak
  float* peak;         // [64] largest score so far, log 2
  float* sum;          // [64] sum of weights in units of 2^peak
  float* score;        // [48, 64] scratch
  TileMask mask;
  AheadRows ahead;
};

struct BackwardTile {
  const float* query_lanes;     // lanes
  const float* query_rows;      // rows, the same numbers
  const float* grad_out_lanes;  // lanes
  const float* grad_out_rows;   // rows
  const float* lse;             // [64] log 2; +inf for a query without keys
  const float* delta;           // [64]
  const float* key;             // rows
  const float* value;           // rows
  float* grad_query;            // lanes, added to: sum_j ds k
  float* grad_key;              // rows, added to: sum_i ds q (q with its scale log2(e))
  float* grad_value;            // rows, added to
  float* weight;                // [48, 64] scratch
  float* grad_score;            // [48, 64] scratch
  TileMask mask;
};

struct TileFunctions {
  void (*forward)(const ForwardTile& tile);
  void (*backward)(const BackwardTile& tile);
  /// out [columns, rows] = in [rows, columns]^T; both multiples of 16, contiguous.
  void (*transpose)(float* out, const float* in, int rows, int columns);
};

/// padded_dim: one of kPaddedDims. Call the latter two only on machines with their instruction
/// sets.
TileFunctions tile_functions_generic(int padded_dim);
TileFunctions tile_functions_avx2(int padded_dim);
TileFunctions tile_functions_avx512(int padded_dim);

}  // namespace longnet::attention
