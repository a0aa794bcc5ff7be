// The native GPU implementation of attention ("native"): flash attention on tensor cores
// (mma.sync, bf16 in, float32 sums and softmax) that reads dilated rows where they lie. For
// attention.cpp only; arguments are checked already and lie in the GPU's memory.
//
// Scores are products of bf16 numbers summed in float32; weights are rounded to bf16 for the
// product with the values, their sum is not; results are merged into the running float32 (out, lse)
// as attention.h defines. With positions, queries and keys are rotated in float32 and rounded to
// bf16 once. The forward gives the same bits every time; the backward adds grad_query with float
// atomics, so its last bits may differ. Nothing waits or allocates.
// Twins: attention_native_cuda.cu, attention_native_backward_cuda.cu; the *_stub.cpp in builds
// without CUDA throw.
#pragma once

#include <string>

#include "kernels/attention/attention.h"

namespace longnet::cuda {

/// Why no call of this kind is taken, whatever its tensors; empty if some are. Any build, counting
/// contexts too.
std::string native_refusal(const Context& context, const AttentionSize& size);
/// Why this call is not taken; empty if it is.
std::string native_refusal(const Context& context, const AttentionForward& tensors,
                           const AttentionOptions& options);
std::string native_refusal(const Context& context, const AttentionBackward& tensors,
                           const AttentionOptions& options);

/// Bytes of workspace, the same with and without positions.
int64_t native_forward_bytes(const AttentionSize& size, std::span<const SegmentTask> segments);
int64_t native_backward_bytes(const AttentionSize& size, std::span<const SegmentTask> segments);

/// Shared memory of a block, bytes; head_dim as native_refusal allows.
int64_t native_forward_shared_bytes(int64_t head_dim);
int64_t native_backward_shared_bytes(int64_t head_dim);

/// As attention.h, for calls that native_refusal does not refuse.
void native_forward(Context& context, const AttentionForward& tensors,
                    const AttentionOptions& options, void* workspace);
void native_backward(Context& context, const AttentionBackward& tensors,
                     const AttentionOptions& options, void* workspace);

}  // namespace longnet::cuda
