// Attention of one branch call through a library that supports plain attention only (cuDNN).
//
// The segments become groups of equal SDPA problems (attention_cudnn_plan.h). Operands are read in
// place if their rows have regular addresses and need no positions; otherwise they are packed into
// the workspace, rotated. Forward: our merge kernel folds each group's (out, lse) into the running
// float32 ones; the branch's out has been rounded to bf16 once. Backward: the inputs are merged
// out, rounded to bf16, and merged lse; the bf16 gradients are rotated back and added in float32.
// Supports bf16 query, key and value, D a multiple of 8, and no visibility limits.
#pragma once

#include <string>
#include <vector>

#include "kernels/attention/attention.h"

namespace longnet::sdpa {

/// Why all calls of this kind are refused, whatever their tensors; empty if some are supported. Any
/// build, also with counting contexts.
std::string refusal(const Context& context, const AttentionSize& size);

/// Scratch for the calls below in bytes, sufficient whatever can be read in place. Needs no GPU.
int64_t workspace_bytes(const AttentionSize& size, std::span<const SegmentTask> segments,
                        bool backward);

/// Result of a try: number and size of the problems, for logs, or the reason why nothing was done.
struct Outcome {
  std::string refusal;  // empty: done, but for `rest`
  std::string description;
  std::vector<SegmentTask> rest;  // segments that the library refused; nothing was done for them
};
/// attention_forward and attention_backward of attention.h with arguments already checked; or
/// nothing and a reason. whole: also do nothing if the library refuses any segment.
Outcome try_forward(Context& context, const AttentionForward& tensors,
                    const AttentionOptions& options, void* workspace, bool whole);
Outcome try_backward(Context& context, const AttentionBackward& tensors,
                     const AttentionOptions& options, void* workspace, bool whole);

/// For benchmarks: all work of the two functions above for a whole call, except that results are
/// not merged, merged results are not read (the library's backward uses what an earlier call has
/// left in the workspace), and gradients are not added. Returns the refusal.
std::string run_unmerged(Context& context, const AttentionForward& tensors,
                         const AttentionOptions& options, void* workspace);
std::string run_unmerged(Context& context, const AttentionBackward& tensors,
                         const AttentionOptions& options, void* workspace);

}  // namespace longnet::sdpa
