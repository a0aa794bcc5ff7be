// See segment_tasks.h.
#include "kernels/attention/segment_tasks.h"

#include <algorithm>

#include "core/bf16.h"

namespace longnet {
int64_t segment_origin(const SequencePlan& plan, int branch, const Segment& segment) {
  return segment.begin + std::min(plan.branches()[branch].segment_length, plan.tokens()) / 2;
}

HeadRows local_rows(const SequencePlan& plan, int branch, const Segment& segment) {
  const int64_t dilation = plan.branches()[branch].dilation;
  HeadRows rows;
  rows.step = dilation;
  for (int64_t h = 0; h < plan.heads(); ++h) {
    const RowRange range = plan.rows(branch, segment, plan.rank(), h);
    const int64_t offset = head_offset(h, plan.heads(), dilation, plan.mode());
    const int64_t token = segment.begin + offset + range.first * dilation;
    rows.slot.push_back(range.count > 0 ? token - plan.local_begin() : 0);
    rows.first.push_back(range.first);
    rows.count.push_back(range.count);
  }
  return rows;
}

SegmentTask local_segment_task(const SequencePlan& plan, int branch, const Segment& segment,
                               const TensorView& key, const TensorView& value,
                               const TensorView& grad_key, const TensorView& grad_value) {
  SegmentTask task;
  task.segment = segment;
  task.origin = segment_origin(plan, branch, segment);
  task.queries = local_rows(plan, branch, segment);
  task.keys.push_back({key, value, grad_key, grad_value, task.queries, false});
  return task;
}

std::vector<SegmentTask> local_segment_tasks(const SequencePlan& plan, int branch,
                                             const TensorView& key, const TensorView& value,
                                             const TensorView& grad_key,
                                             const TensorView& grad_value) {
  std::vector<SegmentTask> tasks;
  for (const Segment& segment : plan.local_segments(branch))
    tasks.push_back(local_segment_task(plan, branch, segment, key, value, grad_key, grad_value));
  return tasks;
}

GatheredTask::GatheredTask(const SequencePlan& plan, int branch, const GatheredSegment& gathered,
                           const GatherLayout& layout, Sources sources)
    : batch_(layout.batch),
      heads_(plan.heads()),
      head_dim_(layout.head_dim),
      elements_(layout.elements()) {
  task_.segment = gathered.segment;
  task_.origin = segment_origin(plan, branch, gathered.segment);
  task_.queries = local_rows(plan, branch, gathered.segment);
  const int step = sources == Sources::kJoined ? layout.ranks() : 1;
  for (int member = 0; member < layout.ranks(); member += step) add(layout, member, member + step);
}

/// The source of members first .. end - 1, if they have rows.
void GatheredTask::add(const GatherLayout& layout, int first, int end) {
  const int64_t rows = layout.chunk_rows(first, end);
  if (rows == 0) return;
  KeySource source;
  source.positions_applied = true;
  source.rows.slot = layout.row_slot(first, end);
  for (int64_t h = 0; h < heads_; ++h) {
    const RowRange range = layout.rows(first, end, h);
    source.rows.first.push_back(range.first);
    source.rows.count.push_back(range.count);
  }
  task_.keys.push_back(std::move(source));
  chunks_.push_back({layout.chunk_begin(first), rows});
}

const SegmentTask& GatheredTask::bind(const TensorView& buffer, const TensorView& grad_buffer) {
  for (const TensorView* b : {&buffer, &grad_buffer})
    LN_CHECK(
        !b->defined() || (is_float_type(b->dtype) && b->contiguous() && b->elements() == elements_),
        "gathered rows in {}, wanted {} contiguous f32 or bf16", b->describe(), elements_);
  for (size_t i = 0; i < chunks_.size(); ++i) {
    KeySource& source = task_.keys[i];
    source.key = view(buffer, chunks_[i], 0);
    source.value = view(buffer, chunks_[i], 1);
    source.grad_key = view(grad_buffer, chunks_[i], 0);
    source.grad_value = view(grad_buffer, chunks_[i], 1);
  }
  return task_;
}

/// [B, R, H, D] view of the keys (part 0) or values (part 1) of one chunk [2, B, R, D]; every head
/// sees all R rows (stride 0) and picks its own by slot.
TensorView GatheredTask::view(const TensorView& buffer, const Chunk& chunk, int part) const {
  if (!buffer.defined()) return {};
  const int64_t begin = chunk.begin + part * batch_ * chunk.rows * head_dim_;
  TensorView view(static_cast<char*>(buffer.data) + begin * dtype_size(buffer.dtype), buffer.dtype,
                  {batch_, chunk.rows, heads_, head_dim_}, buffer.device);
  view.stride = {chunk.rows * head_dim_, head_dim_, 0, 1};
  return view;
}

SegmentTask gathered_segment_task(const SequencePlan& plan, int branch,
                                  const GatheredSegment& gathered, const GatherLayout& layout,
                                  const TensorView& buffer, const TensorView& grad_buffer) {
  return GatheredTask(plan, branch, gathered, layout, GatheredTask::Sources::kRanks)
      .bind(buffer, grad_buffer);
}

}  // namespace longnet
