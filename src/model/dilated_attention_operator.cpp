// See dilated_attention_operator.h and docs/sequence_parallel.md.
#include "model/dilated_attention_operator.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/fill/fill.h"

namespace longnet {

DilatedAttentionOperator::DilatedAttentionOperator(Context& context, const SequencePlan& plan,
                                                   int64_t batch,
                                                   const DilatedAttentionSettings& settings,
                                                   KeyValueExchange& exchange, Arena& workspace)
    : context_(context),
      plan_(plan),
      batch_(batch),
      settings_(settings),
      exchange_(exchange),
      rotary_(settings.head_dim, settings.rotary) {
  if (settings_.scale == 0) settings_.scale = 1.0 / std::sqrt(double(settings_.head_dim));
  const int branches = static_cast<int>(plan_.branches().size());
  int64_t workspace_bytes = 0;
  const auto reserve = [&](std::span<const SegmentTask> tasks) {
    workspace_bytes =
        std::max(workspace_bytes,
                 attention_workspace_bytes(context_, {batch_, settings_.head_dim, settings_.dtype},
                                           tasks, settings_.training));
  };
  for (int branch = 0; branch < branches; ++branch) {
    head_offsets_.push_back(plan_.head_offsets(branch));
    list_local(branch);
    reserve(local_tasks_.back());
    const std::vector<GatheredSegment> segments = plan_.gathered_segments(branch);
    for (int which = 0; which < static_cast<int>(segments.size()); ++which) {
      GatherLayout layout(plan_, branch, segments[which], batch_, settings_.head_dim);
      GatheredTask task(
          plan_, branch, segments[which], layout,
          counts_only() ? GatheredTask::Sources::kJoined : GatheredTask::Sources::kRanks);
      gathered_.push_back({branch, which, segments[which].number, layout, std::move(task),
                           layout.row_slot(layout.mine), layout.chunk_begin(layout.mine),
                           layout.chunk_rows(layout.mine)});
    }
  }
  // Every rank issues branch by branch, even segments before odd ones: one global order, in which
  // no rank waits for a transfer that another has queued behind one of a third rank.
  std::stable_sort(gathered_.begin(), gathered_.end(),
                   [](const GatheredWork& a, const GatheredWork& b) {
                     return std::pair(a.branch, a.number % 2) < std::pair(b.branch, b.number % 2);
                   });
  for (GatheredWork& work : gathered_) {
    reserve({&work.task.bind({}, {}), 1});
    if (settings_.training)
      grad_buffers_.push_back(workspace.allocate(DType::kF32, {work.layout.elements()}));
  }
  if (settings_.training)
    delta_ = workspace.allocate(DType::kF32, {batch_, plan_.heads(), plan_.local_tokens()});
  workspace_ = workspace.allocate_bytes(workspace_bytes);
}

/// Lists the local segments of the next branch. On a counting CPU one of each kind represents all,
/// so that the cost of a plan does not depend on their number; a GPU's scratch depends on all of
/// them.
void DilatedAttentionOperator::list_local(int branch) {
  if (!counts_only()) {
    local_tasks_.push_back(local_segment_tasks(plan_, branch, {}, {}, {}, {}));
    return;
  }
  local_tasks_.emplace_back();
  copies_.emplace_back();
  for (const SegmentClass& c : plan_.local_classes(branch)) {
    local_tasks_.back().push_back(local_segment_task(plan_, branch, c.first, {}, {}, {}, {}));
    copies_.back().push_back(c.count);
  }
}

/// call(tasks) for all local segments of a branch; for one of a kind its FLOPs count for all.
template <typename Call>
void DilatedAttentionOperator::for_local(size_t branch, const Call& call) {
  const std::span<const SegmentTask> tasks = local_tasks_[branch];
  if (copies_.empty()) return call(tasks);
  for (size_t i = 0; i < tasks.size(); ++i) {
    const Work before = context_.work();
    call(tasks.subspan(i, 1));
    context_.work().repeat_since(before, copies_[branch][i]);
  }
}

AttentionOperator::Saved DilatedAttentionOperator::make_saved(Arena& activations) {
  Saved saved;
  saved.layer = layers_++;
  for (const GatheredWork& work : gathered_)
    saved.gathered.push_back(activations.allocate(settings_.dtype, {work.layout.elements()}));
  return saved;
}

AttentionOptions DilatedAttentionOperator::options(int branch, const Visibility& visibility) const {
  AttentionOptions options;
  options.dilation = plan_.branches()[branch].dilation;
  options.segment_length = plan_.branches()[branch].segment_length;
  options.head_offset = head_offsets_[branch];
  options.rotary = rotary_.enabled() ? &rotary_ : nullptr;
  options.scale = static_cast<float>(settings_.scale);
  options.causal = settings_.causal;
  options.first_visible = visibility.first_visible;
  options.last_visible = visibility.last_visible;
  return options;
}

TensorView DilatedAttentionOperator::own_part(const GatheredWork& work, const TensorView& buffer,
                                              int64_t part) const {
  // The own chunk is [2 (keys, values), B, R, D].
  const int64_t elements = 2 * batch_ * work.own_rows * settings_.head_dim;
  return buffer.slice(0, work.own_begin, elements)
      .view({2, batch_, work.own_rows, settings_.head_dim})
      .slice(0, part, 1)
      .view({batch_, work.own_rows, settings_.head_dim});
}

void DilatedAttentionOperator::forward(const TensorView& out, const TensorView& lse,
                                       const QueryKeyValue& inputs, Saved& saved,
                                       const Visibility& visibility) {
  {
    Range range(context_, "gather");
    for (size_t i = 0; i < gathered_.size(); ++i) {
      GatheredWork& work = gathered_[i];
      const TensorView& buffer = saved.gathered[i];
      attention_pack_rows(context_, own_part(work, buffer, 0), own_part(work, buffer, 1),
                          inputs.key, inputs.value, work.task.queries(), work.own_slot,
                          work.task.bind(buffer, {}), options(work.branch, visibility));
      exchange_.start_gather(work.branch, work.which, buffer);
    }
  }
  attend_local(out, lse, inputs, visibility);
  for (size_t i = 0; i < gathered_.size(); ++i) {
    {
      Range range(context_, "gather");
      exchange_.wait_gather(gathered_[i].branch, gathered_[i].which);
    }
    attend_gathered(i, out, lse, inputs.query, saved, visibility);
  }
}

void DilatedAttentionOperator::recompute(const TensorView& out, const TensorView& lse,
                                         const QueryKeyValue& inputs, const Saved& saved,
                                         const Visibility& visibility) {
  attend_local(out, lse, inputs, visibility);
  for (size_t i = 0; i < gathered_.size(); ++i)
    attend_gathered(i, out, lse, inputs.query, saved, visibility);
}

void DilatedAttentionOperator::attend_local(const TensorView& out, const TensorView& lse,
                                            const QueryKeyValue& inputs,
                                            const Visibility& visibility) {
  Range range(context_, "attention");
  attention_begin(context_, out, lse);
  for (size_t branch = 0; branch < local_tasks_.size(); ++branch) {
    std::vector<SegmentTask>& tasks = local_tasks_[branch];
    for (SegmentTask& task : tasks) {
      task.keys[0].key = inputs.key;
      task.keys[0].value = inputs.value;
    }
    for_local(branch, [&](std::span<const SegmentTask> part) {
      attention_forward(context_, {out, lse, inputs.query, part},
                        options(static_cast<int>(branch), visibility), workspace_);
    });
    context_.keep_pace();
  }
}

void DilatedAttentionOperator::attend_gathered(size_t index, const TensorView& out,
                                               const TensorView& lse, const TensorView& query,
                                               const Saved& saved, const Visibility& visibility) {
  Range range(context_, "attention");
  GatheredWork& work = gathered_[index];
  const SegmentTask& task = work.task.bind(saved.gathered[index], {});
  attention_forward(context_, {out, lse, query, {&task, 1}}, options(work.branch, visibility),
                    workspace_);
  context_.keep_pace();
}

void DilatedAttentionOperator::backward(const QueryKeyValue& gradients, const TensorView& grad_out,
                                        const TensorView& out, const TensorView& lse,
                                        const QueryKeyValue& inputs, Saved& saved,
                                        const Visibility& visibility) {
  LN_CHECK(settings_.training, "backward of an operator built without training");
  {
    Range range(context_, "attention");
    fill(context_, gradients.query, 0.0f);
    fill(context_, gradients.key, 0.0f);
    fill(context_, gradients.value, 0.0f);
    attention_delta(context_, delta_, grad_out, out);
  }
  const auto backward = [&](std::span<const SegmentTask> tasks, int branch) {
    Range range(context_, "attention");
    attention_backward(context_, {gradients.query, grad_out, lse, delta_, inputs.query, tasks, out},
                       options(branch, visibility), workspace_);
    context_.keep_pace();
  };
  for (size_t i = 0; i < gathered_.size(); ++i) {
    GatheredWork& work = gathered_[i];
    fill(context_, grad_buffers_[i], 0.0f);
    backward({&work.task.bind(saved.gathered[i], grad_buffers_[i]), 1}, work.branch);
    Range range(context_, "gather");
    exchange_.start_reduce(work.branch, work.which, grad_buffers_[i]);
  }
  for (size_t branch = 0; branch < local_tasks_.size(); ++branch) {
    std::vector<SegmentTask>& tasks = local_tasks_[branch];
    for (SegmentTask& task : tasks) {
      task.keys[0].key = inputs.key;
      task.keys[0].value = inputs.value;
      task.keys[0].grad_key = gradients.key;
      task.keys[0].grad_value = gradients.value;
    }
    for_local(branch,
              [&](std::span<const SegmentTask> part) { backward(part, static_cast<int>(branch)); });
  }
  for (size_t i = 0; i < gathered_.size(); ++i) {
    GatheredWork& work = gathered_[i];
    Range range(context_, "gather");
    exchange_.wait_reduce(work.branch, work.which);
    attention_unpack_rows_add(
        context_, gradients.key, gradients.value, own_part(work, grad_buffers_[i], 0),
        own_part(work, grad_buffers_[i], 1), work.task.queries(), work.own_slot,
        work.task.bind(saved.gathered[i], {}), options(work.branch, visibility));
  }
}

}  // namespace longnet
