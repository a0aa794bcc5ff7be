// Functions that attention.cpp (the dispatcher) calls with a CUDA Context. Arguments are checked
// already and lie in GPU memory; meaning, shapes and errors as in attention.h. Not public.
//
// Every function throws Error in a build without CUDA. No function waits; descriptions of segments
// are copied into `workspace` on the Context's stream. Results do not depend on timing: no
// floating-point atomics, fixed orders of summation.
#pragma once

#include "kernels/attention/attention.h"

namespace longnet::cuda {

/// Bytes of device memory; the same with and without rotary positions.
int64_t attention_workspace_bytes(const Context& context, int64_t head_dim,
                                  std::span<const SegmentTask> segments, bool backward);
/// out = 0, lse = -inf. Rows may be strided, the last axis is contiguous.
void attention_begin(Context& context, const TensorView& out, const TensorView& lse);
void attention_forward(Context& context, const AttentionForward& tensors,
                       const AttentionOptions& options, void* workspace);
void attention_delta(Context& context, const TensorView& delta, const TensorView& grad_out,
                     const TensorView& out);
void attention_backward(Context& context, const AttentionBackward& tensors,
                        const AttentionOptions& options, void* workspace);
/// f32 or bf16 tokens into f32 or bf16 chunks; keys and values have one type, or Error.
void attention_pack_rows(Context& context, const TensorView& chunk_key,
                         const TensorView& chunk_value, const TensorView& key,
                         const TensorView& value, const HeadRows& rows,
                         std::span<const int64_t> chunk_slot, const SegmentTask& task,
                         const AttentionOptions& options);
void attention_unpack_rows_add(Context& context, const TensorView& grad_key,
                               const TensorView& grad_value, const TensorView& chunk_grad_key,
                               const TensorView& chunk_grad_value, const HeadRows& rows,
                               std::span<const int64_t> chunk_slot, const SegmentTask& task,
                               const AttentionOptions& options);

}  // namespace longnet::cuda
