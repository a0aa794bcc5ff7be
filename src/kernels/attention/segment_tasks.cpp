// See segment_tasks.h.
#include "kernels/attention/segment_tasks.h"

#include <algorithm>

#include "core/bf16.h"

namespace longnet {
namespace {

/// [B, R, H, D] view of the keys (part 0) or values (part 1) of one chunk [2, B, R, D]; every head
/// sees all R rows (stride 0) and picks its own by slot.
TensorView chunk_view(const TensorView& buffer, const GatherLayout& layout, int member, int part,
                      int64_t heads) {
  if (!buffer.defined()) return {};
  LN_CHECK(
      is_float_type(buffer.dtype) && buffer.contiguous() && buffer.elements() == layout.elements(),
      "gathered rows in {}, wanted {} contiguous f32 or bf16", buffer.describe(),
      layout.elements());
  const int64_t rows = layout.chunk_rows[member], head_dim = layout.head_dim;
  const int64_t begin = layout.chunk_begin[member] + part * layout.batch * rows * head_dim;
  TensorView view(static_cast<char*>(buffer.data) + begin * dtype_size(buffer.dtype), buffer.dtype,
                  {layout.batch, rows, heads, head_dim}, buffer.device);
  view.stride = {rows * head_dim, head_dim, 0, 1};
  return view;
}

}  // namespace

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

SegmentTask gathered_segment_task(const SequencePlan& plan, int branch,
                                  const GatheredSegment& gathered, const GatherLayout& layout,
                                  const TensorView& buffer, const TensorView& grad_buffer) {
  SegmentTask task;
  task.segment = gathered.segment;
  task.origin = segment_origin(plan, branch, gathered.segment);
  task.queries = local_rows(plan, branch, gathered.segment);
  for (int member = 0; member < gathered.ranks(); ++member) {
    if (layout.chunk_rows[member] == 0) continue;
    KeySource source;
    source.key = chunk_view(buffer, layout, member, 0, plan.heads());
    source.value = chunk_view(buffer, layout, member, 1, plan.heads());
    source.grad_key = chunk_view(grad_buffer, layout, member, 0, plan.heads());
    source.grad_value = chunk_view(grad_buffer, layout, member, 1, plan.heads());
    source.positions_applied = true;
    source.rows.slot = layout.row_slot[member];
    for (const RowRange& range : layout.rows[member]) {
      source.rows.first.push_back(range.first);
      source.rows.count.push_back(range.count);
    }
    task.keys.push_back(std::move(source));
  }
  return task;
}

}  // namespace longnet
