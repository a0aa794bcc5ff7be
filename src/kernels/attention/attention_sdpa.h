// Attention of one branch call through a library that knows plain attention only (cuDNN).
//
// The segments become groups of equal SDPA problems (attention_cudnn_plan.h). Operands are read in
// place where their rows have regular addresses and no positions are to be applied, else packed
// into the workspace, rotated. Forward: each group's (out, lse) is folded into the running float32
// ones by our merge kernel, a branch's out having been rounded to bf16 once. Backward: merged out,
// rounded to bf16, and merged lse go in; bf16 gradients come out, are rotated back and added in
// float32. It takes bf16 query, key and value, D a multiple of 8, and no visibility limits.
#pragma once

#include <string>
#include <vector>

#include "kernels/attention/attention.h"

namespace longnet::sdpa {

/// Why no call of this kind is taken, whatever its tensors; empty if some are. Any build, counting
/// contexts too.
std::string refusal(const Context& context, const AttentionSize& size);

/// Scratch for the calls below, bytes; enough whatever can be read in place. Needs no GPU.
int64_t workspace_bytes(const AttentionSize& size, std::span<const SegmentTask> segments,
                        bool backward);

/// What came of a try: the problems' number and size, for logs, or the reason why nothing was done.
struct Outcome {
  std::string refusal;  // empty: done, but for `rest`
  std::string description;
  std::vector<SegmentTask> rest;  // segments that the library refused; nothing was done for them
};
/// attention_forward and attention_backward of attention.h, arguments checked already; or nothing
/// and a reason. whole: nothing is done either if the library refuses any segment.
Outcome try_forward(Context& context, const AttentionForward& tensors,
                    const AttentionOptions& options, void* workspace, bool whole);
Outcome try_backward(Context& context, const AttentionBackward& tensors,
                     const AttentionOptions& options, void* workspace, bool whole);

/// For benchmarks: all that the two above do for a whole call, but results are not merged, merged
/// results not read (the library's backward takes what a call before has left in the workspace),
/// and gradients not added. Returns the refusal.
std::string run_unmerged(Context& context, const AttentionForward& tensors,
                         const AttentionOptions& options, void* workspace);
std::string run_unmerged(Context& context, const AttentionBackward& tensors,
                         const AttentionOptions& options, void* workspace);

}  // namespace longnet::sdpa
