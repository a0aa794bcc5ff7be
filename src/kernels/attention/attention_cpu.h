// Functions that attention.cpp (the dispatcher) calls on the CPU. Arguments are checked already.
// Not public.
#pragma once

#include "kernels/attention/attention.h"

namespace longnet::attention {

int64_t cpu_workspace_bytes(const Context& context, int64_t head_dim,
                            std::span<const SegmentTask> segments, bool backward);
void cpu_forward(Context& context, const AttentionForward& tensors, const AttentionOptions& options,
                 void* workspace);
void cpu_delta(Context& context, const TensorView& delta, const TensorView& grad_out,
               const TensorView& out);
void cpu_backward(Context& context, const AttentionBackward& tensors,
                  const AttentionOptions& options, void* workspace);
void cpu_pack_rows(Context& context, const TensorView& chunk_key, const TensorView& chunk_value,
                   const TensorView& key, const TensorView& value, const HeadRows& rows,
                   std::span<const int64_t> chunk_slot, const SegmentTask& task,
                   const AttentionOptions& options);
void cpu_unpack_rows_add(Context& context, const TensorView& grad_key, const TensorView& grad_value,
                         const TensorView& chunk_grad_key, const TensorView& chunk_grad_value,
                         const HeadRows& rows, std::span<const int64_t> chunk_slot,
                         const SegmentTask& task, const AttentionOptions& options);

}  // namespace longnet::attention
