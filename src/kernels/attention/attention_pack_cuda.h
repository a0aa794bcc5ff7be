// Rows of attention between their tensors and the packed operands of a library's SDPA problem: pack
// (with positions), merge of a branch's result into the running one, and gradients back. For
// attention_sdpa.cpp only.
//
// A packed operand is bf16 [rows, D], sequence after sequence; a RowSpan says which of its rows are
// which rows of a strided tensor. Nothing waits or allocates; each row of a tensor is written by
// one span of a launch, so results do not depend on timing. D is a multiple of 8; rows of all
// tensors are aligned to 16 bytes. Every function throws Error in a build without CUDA.
#pragma once

#include <cstdint>

#include "core/context.h"
#include "core/tensor.h"
#include "kernels/rotary/rotary.h"

namespace longnet::cuda {

/// One [B, S, H, D] tensor, as kernels see it.
struct StridedRows {
  void* data;
  int64_t batch, slot, head;  // strides, elements
  int32_t rotate;             // 0: rows of this tensor have no positions to apply
};

/// Rows slot, slot + step, ... of one head are packed rows packed_row, packed_row + 1, ... of each
/// sequence.
struct RowSpan {
  int64_t slot, step;
  int64_t position;    // of the first row, tokens from the segment's origin
  int64_t packed_row;  // inside a sequence's rows
  int32_t head;
  int32_t source;  // which tensor: tensors[source * SpanList::tensor_step]
  int32_t count;
};

struct SpanList {
  const RowSpan* spans;        // device memory
  const StridedRows* tensors;  // device memory; where spans point with source 0
  int32_t tensor_step;         // distance of the tensors that `source` counts
  int64_t count, longest;      // spans, and rows of the longest one
  int64_t batch;               // sequences
  int64_t rows_per_sequence;   // packed rows of one sequence
  int64_t head_dim;
};

/// Positions of the rows: query or key factors of rotary.h. rotary null: none.
struct RowPositions {
  const RotaryTable* rotary = nullptr;
  bool key = false;
  int64_t dilation = 1;
};

/// lse [B, H, L] f32, strides in elements.
struct LseRows {
  float* data;
  int64_t batch, head, slot;
};

/// packed = rows, rotated in float, rounded once. type: of the tensors.
void sdpa_pack_rows(Context& context, void* packed, const SpanList& list, DType type,
                    const RowPositions& positions);
/// packed_out = out (f32), packed_lse [rows] = lse.
void sdpa_pack_results(Context& context, void* packed_out, float* packed_lse, const SpanList& list,
                       const LseRows& lse);
/// Folds a branch's (o, lse) into the running f32 (out, lse) of the tensors, as attention.h defines
/// it. A row with packed_lse -inf changes nothing; NaN spreads.
void sdpa_merge_rows(Context& context, const SpanList& list, const LseRows& lse,
                     const void* packed_out, const float* packed_lse);
/// f32 tensors += packed, rotated back.
void sdpa_add_rows(Context& context, const SpanList& list, const void* packed,
                   const RowPositions& positions);

}  // namespace longnet::cuda
