// Builds the SegmentTask lists of a SequencePlan, the input of attention_forward / _backward for
// each branch.
//
// Positions of every task are measured from the middle of a full segment, segment.begin + min(w, N)
// / 2, which is the same on every rank. The functions only compute integers and views and read no
// memory, so counting arenas and undefined tensors are allowed (bind task.keys[i].* later).
#pragma once

#include <vector>

#include "core/sequence_plan.h"
#include "kernels/attention/attention.h"

namespace longnet {

/// Global token from which the positions of a segment are measured; equal on every rank.
int64_t segment_origin(const SequencePlan& plan, int branch, const Segment& segment);

/// The rows of a segment that lie on the plan's rank, as rows of a [B, L, H, D] tensor.
HeadRows local_rows(const SequencePlan& plan, int branch, const Segment& segment);

/// The task of a segment wholly inside this rank, with one KeySource of local tokens.
/// key, value, grad_key, grad_value: [B, L, H, D], the last two may be undefined (forward only).
SegmentTask local_segment_task(const SequencePlan& plan, int branch, const Segment& segment,
                               const TensorView& key, const TensorView& value,
                               const TensorView& grad_key, const TensorView& grad_value);
/// One such task per segment of SequencePlan::local_segments.
std::vector<SegmentTask> local_segment_tasks(const SequencePlan& plan, int branch,
                                             const TensorView& key, const TensorView& value,
                                             const TensorView& grad_key,
                                             const TensorView& grad_value);

/// The task of this rank's queries in a gathered segment: one KeySource per rank that holds rows,
/// [B, R, H, D] views of its chunk with head stride 0 and keys already rotated. It is built once;
/// bind() sets the buffers of a call.
class GatheredTask {
 public:
  /// kRanks: as above. kJoined: one source that represents all ranks together, for plans on a CPU:
  /// workspace and FLOPs are the same, and the cost does not depend on the number of ranks.
  enum class Sources { kRanks, kJoined };
  GatheredTask(const SequencePlan& plan, int branch, const GatheredSegment& gathered,
               const GatherLayout& layout, Sources sources);

  /// buffer: keys and values, f32 or bf16; grad_buffer: their gradients, f32; layout.elements()
  /// each; either may be undefined (forward only, or to ask for the workspace). Valid until the
  /// next call.
  const SegmentTask& bind(const TensorView& buffer, const TensorView& grad_buffer);
  const HeadRows& queries() const { return task_.queries; }

 private:
  struct Chunk {
    int64_t begin = 0, rows = 0;  // elements from the buffer's start; R
  };
  void add(const GatherLayout& layout, int first, int end);
  TensorView view(const TensorView& buffer, const Chunk& chunk, int part) const;

  SegmentTask task_;
  std::vector<Chunk> chunks_;  // of the sources
  int64_t batch_, heads_, head_dim_, elements_;
};

/// The same with one source per rank and with these buffers.
SegmentTask gathered_segment_task(const SequencePlan& plan, int branch,
                                  const GatheredSegment& gathered, const GatherLayout& layout,
                                  const TensorView& buffer, const TensorView& grad_buffer);

}  // namespace longnet
