// KeyValueExchange: the only interface between model (single-rank mathematics) and dist.
//
// For each gathered segment (SequencePlan::gathered_segments) the model owns one buffer with the
// layout of GatherLayout. Forward: the model fills its own chunk; the exchange gathers the others.
// Backward: the model holds the gradient of *every* chunk; the exchange returns each chunk's sum to
// its owner. `branch` is the index of the branch, `which` the index in gathered_segments(branch), 0
// or 1.
#pragma once

#include "core/sequence_plan.h"
#include "core/tensor.h"

namespace longnet {

/// Bytes that this rank has sent since the start.
struct Traffic {
  int64_t forward_bytes = 0;         // gathered rows, as an all-gather moves them
  int64_t forward_needed_bytes = 0;  // of these, what a causal query somewhere uses
  int64_t backward_bytes = 0;        // gradients of gathered rows, float32
  int64_t gradient_bytes = 0;        // parameter gradients
};

class KeyValueExchange {
 public:
  virtual ~KeyValueExchange() = default;

  /// Starts the all-gather of `buffer` (f32 or bf16, GatherLayout::elements() long), whose own
  /// chunk is filled. Returns at once; the buffer must stay untouched until wait_gather. On a GPU
  /// "filled" and "until" refer to the order of kernels; the host does not wait.
  virtual void start_gather(int branch, int which, const TensorView& buffer) = 0;
  virtual void wait_gather(int branch, int which) = 0;

  /// Starts the reduce-scatter of `buffer` (always f32). Every rank holds gradients of all chunks;
  /// after wait_reduce the own chunk is their sum, added in rank order, and the other chunks are
  /// undefined. Returns at once.
  virtual void start_reduce(int branch, int which, const TensorView& buffer) = 0;
  virtual void wait_reduce(int branch, int which) = 0;

  /// Advances pending transfers (MPI_Test); cheap; called between pieces of computation.
  virtual void progress() = 0;
};

}  // namespace longnet
