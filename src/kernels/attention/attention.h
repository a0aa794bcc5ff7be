// Attention of one branch over the rows that this rank holds, forward and backward (flash-style,
// FlashAttention-2, arXiv 2307.08691; LongNet, arXiv 2307.02486).
//
// One branch (w, r) is a list of SegmentTask. Each task has query rows (always local tokens) and
// keys from one or several KeySource (local tokens, or chunks gathered from other ranks). Row i of
// head h is the token begin + head_offset[h] + i r; a causal query row sees the key rows with index
// <= its own.
//   s_ij = scale <rot(q_i), rot(k_j)>
// Forward, continuing the running (o, lse) of earlier branches (one softmax over all of them):
//   lse' = log(exp(lse_i) + sum_j exp(s_ij))
//   o'   = (exp(lse_i) o_i + sum_j exp(s_ij) v_j) / exp(lse')
// Backward, with the *merged* final o and lse, and delta_i = <grad_o_i, o_i>:
//   p_ij        = exp(s_ij - lse_i)
//   ds_ij       = p_ij (<grad_o_i, v_j> - delta_i)
//   grad_v_j   += sum_i p_ij grad_o_i
//   grad_q_i   += scale sum_j ds_ij k_j
//   grad_k_j   += scale sum_i ds_ij q_i    (gradients of q and k are then rotated back)
// A query without any key keeps o = 0, lse = -inf and passes no gradient. query, key, value and
// grad_out are each f32 or bf16, as their views say; all sums, o, lse and gradients are float32.
//
// Twins: attention_reference.cpp (double sums), attention_cpu.cpp (and one source per instruction
// set), and on a GPU attention_sdpa.cpp ("cudnn"), attention_native_cuda.cu with
// attention_native_backward_cuda.cu ("native"), and attention_cuda.cu ("plain").
// Context::attention() forces one of these, or lets each call take the first that supports it, in
// this order; the log reports the choice and its reason once per branch. Nothing allocates:
// attention_workspace_bytes() gives the scratch needed. Results do not depend on the order in which
// threads run, except gradients of cudnn and native, which may differ in their last bits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/context.h"
#include "core/sequence_plan.h"
#include "core/tensor.h"
#include "kernels/rotary/rotary.h"

namespace longnet {

/// The rows of one segment, per head, inside a tensor [B, S, H, D] (S: tokens or row slots).
struct HeadRows {
  std::vector<int64_t> slot;   // [H] index on axis 1 of the head's first row
  std::vector<int64_t> first;  // [H] that row's number in the segment
  std::vector<int64_t> count;  // [H] rows, may be 0
  int64_t step = 1;            // axis-1 distance of consecutive rows (r for tokens, 1 in chunks)
};

/// Keys and values of one segment from one place. Gathered chunks are [B, R, H, D] views with head
/// stride 0 (each head's rows begin at its own slot).
struct KeySource {
  TensorView key, value;            // [B, S, H, D] f32 or bf16, last axis contiguous
  TensorView grad_key, grad_value;  // [B, S, H, D] f32, added to; backward only
  HeadRows rows;
  bool positions_applied = false;  // true: keys are already rotated, and grad_key stays rotated
};

struct SegmentTask {
  Segment segment;     // global tokens
  int64_t origin = 0;  // global token from which positions are measured
  HeadRows queries;
  std::vector<KeySource> keys;  // in rising row order
};

struct AttentionOptions {
  int64_t dilation = 1;                  // r of this branch
  std::span<const int64_t> head_offset;  // [H] of this branch
  const RotaryTable* rotary = nullptr;   // null or not enabled: no positions
  float scale = 1.0f;                    // usually D^-1/2
  bool causal = true;
  /// Optional (undefined: no limit), [B, L] i64: query token t sees key tokens u (global numbers)
  /// only if first_visible[t] <= u <= last_visible[t]; used for document boundaries.
  TensorView first_visible, last_visible;
  int64_t segment_length = 0;  // w of this branch, for messages; 0: the longest of the call
};

struct AttentionForward {
  TensorView out;    // [B, L, H, D] f32, running output, read and written
  TensorView lse;    // [B, H, L] f32, running log-sum-exp in nats, read and written
  TensorView query;  // [B, L, H, D] f32 or bf16
  std::span<const SegmentTask> segments;
};

struct AttentionBackward {
  TensorView grad_query;                  // [B, L, H, D] f32, added to
  TensorView grad_out;                    // [B, L, H, D] f32 or bf16
  TensorView lse;                         // [B, H, L] f32, of all branches
  TensorView delta;                       // [B, H, L] f32, from attention_delta
  TensorView query;                       // [B, L, H, D] f32 or bf16
  std::span<const SegmentTask> segments;  // their KeySource::grad_* are added to
  /// [B, L, H, D] f32, of all branches; cuDNN computes its delta from it. If undefined, another
  /// implementation handles the call.
  TensorView out = {};
};

/// The sizes that scratch depends on, besides the segments.
struct AttentionSize {
  int64_t batch = 1;          // B
  int64_t head_dim = 64;      // D
  DType dtype = DType::kF32;  // of query, key and value
};
/// Scratch for one call with these segments on the whole device, in bytes. On a GPU it suffices for
/// every implementation that Context::attention() allows. backward: includes the forward's. The
/// same in a counting context.
int64_t attention_workspace_bytes(const Context& context, const AttentionSize& size,
                                  std::span<const SegmentTask> segments, bool backward);

/// out = 0, lse = -inf: the state before the first branch.
void attention_begin(Context& context, const TensorView& out, const TensorView& lse);
/// Adds one branch's segments to the running (out, lse). D from 8 to 256.
/// workspace: attention_workspace_bytes(..., false), kAlignment-aligned.
void attention_forward(Context& context, const AttentionForward& tensors,
                       const AttentionOptions& options, void* workspace);
/// delta[b, h, t] = sum_d grad_out out; once per backward, before the branches.
void attention_delta(Context& context, const TensorView& delta, const TensorView& grad_out,
                     const TensorView& out);
/// Adds one branch's gradients. workspace: attention_workspace_bytes(..., true).
void attention_backward(Context& context, const AttentionBackward& tensors,
                        const AttentionOptions& options, void* workspace);

/// Copies this rank's kept rows into its chunk of a gathered segment. Keys are rotated in float32,
/// then rounded to the chunk's type. chunk_key, chunk_value: [B, R, D]; key, value: [B, L, H, D];
/// rows: local tokens; chunk_slot: [H] first row of each head in the chunk.
void attention_pack_rows(Context& context, const TensorView& chunk_key,
                         const TensorView& chunk_value, const TensorView& key,
                         const TensorView& value, const HeadRows& rows,
                         std::span<const int64_t> chunk_slot, const SegmentTask& task,
                         const AttentionOptions& options);
/// The gradient of attention_pack_rows: grad_key += chunk_grad_key rotated back, grad_value += ...
void attention_unpack_rows_add(Context& context, const TensorView& grad_key,
                               const TensorView& grad_value, const TensorView& chunk_grad_key,
                               const TensorView& chunk_grad_value, const HeadRows& rows,
                               std::span<const int64_t> chunk_slot, const SegmentTask& task,
                               const AttentionOptions& options);

/// The definition: double sums, one thread; the same arguments and effects (no workspace).
namespace reference {
void attention_forward(const AttentionForward& tensors, const AttentionOptions& options);
void attention_delta(const TensorView& delta, const TensorView& grad_out, const TensorView& out);
void attention_backward(const AttentionBackward& tensors, const AttentionOptions& options);
}  // namespace reference

}  // namespace longnet
