// See attention_sdpa.h.
#include "kernels/attention/attention_sdpa.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "core/alignment.h"
#include "core/upload_ring.h"
#include "kernels/attention/attention_cudnn.h"
#include "kernels/attention/attention_pack_cuda.h"

namespace longnet::sdpa {
namespace {

using cuda::RowSpan;
using cuda::SpanList;
using cuda::StridedRows;

enum class Parts { kAll, kUnmerged };

// --- 1. the workspace: descriptions first, then the operands of one group after the other

// The tensors that kernels access: four of the queries, then four per KeySource.
enum QueryTensor { kQuery, kOut, kGradOut, kGradQuery, kQueryTensors };
enum KeyTensor { kKey, kValue, kGradKey, kGradValue, kKeyTensors };

int64_t description_bytes(int64_t sources, int64_t spans) {
  return aligned_bytes((kQueryTensors + sources * kKeyTensors) * int64_t{sizeof(StridedRows)}) +
         aligned_bytes(spans * int64_t{sizeof(RowSpan)});
}

/// Where the operands of one group lie behind the descriptions; offsets in bytes.
struct OperandLayout {
  int64_t query, key, value, out, lse, grad_out, grad_query, grad_key, grad_value, library, bytes;

  /// units: of one sequence.
  OperandLayout(int64_t units, int64_t query_rows, int64_t key_rows, const AttentionSize& size,
                bool backward) {
    const int64_t entries = size.batch * units;
    const int64_t queries = entries * query_rows * size.head_dim * 2;
    const int64_t keys = entries * key_rows * size.head_dim * 2;
    int64_t at = 0;
    const auto take = [&](int64_t wanted) {
      const int64_t begin = at;
      at += aligned_bytes(wanted);
      return begin;
    };
    query = take(queries);
    key = take(keys);
    value = take(keys);
    out = take(queries);
    lse = take(entries * query_rows * 4);
    grad_out = take(backward ? queries : 0);
    grad_query = take(backward ? queries : 0);
    grad_key = take(backward ? keys : 0);
    grad_value = take(backward ? keys : 0);
    Shape shape;
    shape.batch = entries;
    shape.query_rows = query_rows;
    shape.key_rows = key_rows;
    shape.head_dim = size.head_dim;
    shape.backward = backward;
    library = take(library_workspace_bytes(shape));
    bytes = at;
  }
};

int64_t key_source_count(std::span<const SegmentTask> segments) {
  int64_t count = 0;
  for (const SegmentTask& task : segments) count += static_cast<int64_t>(task.keys.size());
  return count;
}

// --- 2. one call: what is decided before anything runs

struct Operand {
  bool packed = true;
  const void* data = nullptr;  // if not packed
};

struct Problem {
  Shape shape;
  Operand query, key, value, grad_out;
  int64_t first_query_span = 0, first_key_span = 0, key_spans = 0;
  int64_t longest_key_span = 0;
};

/// Everything the two directions share. Views are of the tensors in attention.h; grad_* and out
/// only where the direction has them.
struct Inputs {
  TensorView query, out, lse, grad_out, grad_query;
  std::span<const SegmentTask> segments;
  bool backward = false;
};

bool turned(const AttentionOptions& options) {
  return options.rotary != nullptr && options.rotary->enabled();
}

std::string tensor_refusal(const Context& context, const Inputs& in,
                           const AttentionOptions& options) {
  const AttentionSize size{in.query.shape[0], in.query.shape[3], in.query.dtype};
  if (std::string reason = refusal(context, size); !reason.empty()) return reason;
  if (options.first_visible.defined() || options.last_visible.defined())
    return "visibility limits (documents)";
  if (in.backward && !in.out.defined()) return "the backward was not given the merged out";
  std::vector<const TensorView*> rows{&in.query, &in.out};
  if (in.backward) rows.insert(rows.end(), {&in.grad_out, &in.grad_query});
  for (const SegmentTask& task : in.segments)
    for (const KeySource& source : task.keys) {
      if (source.key.dtype != DType::kBF16 || source.value.dtype != DType::kBF16)
        return "key or value is f32";
      rows.insert(rows.end(), {&source.key, &source.value});
      if (in.backward) rows.insert(rows.end(), {&source.grad_key, &source.grad_value});
    }
  for (const TensorView* view : rows)
    if (!rows_aligned_to(16, *view))
      return fmt::format("rows of {} not aligned to 16 bytes", view->describe());
  return "";
}

class Call {
 public:
  Call(Context& context, const Inputs& in, const AttentionOptions& options)
      : context_(context),
        in_(in),
        options_(options),
        size_{in.query.shape[0], in.query.shape[3], in.query.dtype},
        groups_(make_groups(in.segments, {.causal = options.causal,
                                          .in_place = !turned(options),
                                          .batch = size_.batch,
                                          .head_dim = size_.head_dim})) {
    for (const Group& group : groups_) problems_.push_back(describe(group));
  }

  /// Why some problem is refused, or nothing; marks the segments of those that are.
  std::string refusal(std::vector<bool>& refused_tasks) {
    std::string reason;
    for (size_t i = 0; i < groups_.size(); ++i) {
      const std::string text = cudnn::refusal(context_, problems_[i].shape);
      if (text.empty()) continue;
      if (reason.empty()) reason = text;
      for (const Unit& unit : groups_[i].units) refused_tasks[unit.task] = true;
    }
    return reason;
  }

  /// "2 calls, the largest of 16 x 6 heads with 1024 x 1024 rows, query and key packed, value ..."
  std::string description() const {
    const auto cost = [](const Problem& p) {
      return p.shape.batch * p.shape.heads * p.shape.query_rows * p.shape.key_rows;
    };
    const Problem& p =
        *std::max_element(problems_.begin(), problems_.end(),
                          [&](const Problem& x, const Problem& y) { return cost(x) < cost(y); });
    const auto how = [](const Operand& operand) { return operand.packed ? "packed" : "in place"; };
    return fmt::format("{} {} x {} heads with {} x {} rows, query {}, key {}, value {}",
                       problems_.size() == 1
                           ? "1 call of"
                           : fmt::format("{} calls, the largest of", problems_.size()),
                       p.shape.batch, p.shape.heads, p.shape.query_rows, p.shape.key_rows,
                       how(p.query), how(p.key), how(p.value));
  }

  size_t groups() const { return groups_.size(); }

  void run(void* workspace, Parts parts) {
    parts_ = parts;
    upload(static_cast<char*>(workspace));
    for (size_t i = 0; i < groups_.size(); ++i) {
      run(groups_[i], problems_[i]);
      if (i % 4 == 3) context_.keep_pace();  // about ten kernels each
    }
  }

 private:
  Problem describe(const Group& group) {
    Problem p;
    Shape& s = p.shape;
    s = packed_shape(group, size_.batch, size_.head_dim, options_.scale);
    s.backward = in_.backward;
    const auto choose = [&](Operand& operand, Strides& strides, int64_t rows,
                            const std::optional<InPlace>& place) {
      strides = place ? place->strides : packed_strides(group.heads, rows, size_.head_dim);
      operand = {!place.has_value(), place ? place->data : nullptr};
    };
    std::optional<InPlace> query, key, grad_out;
    bool rotate_keys = false;
    for (const Unit& unit : group.units)
      for (const KeyPiece& piece : unit.keys)
        rotate_keys =
            rotate_keys ||
            (turned(options_) && !in_.segments[unit.task].keys[piece.source].positions_applied);
    if (!turned(options_)) query = queries_in_place(group, in_.segments, in_.query);
    if (!rotate_keys) key = keys_in_place(group, in_.segments, &KeySource::key);
    if (in_.backward) grad_out = queries_in_place(group, in_.segments, in_.grad_out);
    choose(p.query, s.query, s.query_rows, query);
    choose(p.key, s.key, s.key_rows, key);
    choose(p.value, s.value, s.key_rows, keys_in_place(group, in_.segments, &KeySource::value));
    if (in_.backward) choose(p.grad_out, s.grad_out, s.query_rows, grad_out);
    return p;
  }

  // --- 3. descriptions for the kernels

  StridedRows rows_of(const TensorView& x, bool rotate) const {
    return {x.data, x.stride[0], x.stride[1], x.stride[2], rotate ? 1 : 0};
  }

  int64_t first_position(const Unit& unit, int64_t row) const {
    const SegmentTask& task = in_.segments[unit.task];
    return task.segment.begin + options_.head_offset[unit.head] + row * options_.dilation -
           task.origin;
  }

  void upload(char* workspace) {
    std::vector<StridedRows> tensors{rows_of(in_.query, true), rows_of(in_.out, false),
                                     rows_of(in_.grad_out, false), rows_of(in_.grad_query, true)};
    std::vector<int64_t> first_source;  // of every task
    for (const SegmentTask& task : in_.segments) {
      first_source.push_back((static_cast<int64_t>(tensors.size()) - kQueryTensors) / kKeyTensors);
      for (const KeySource& source : task.keys) {
        const bool rotate = !source.positions_applied;
        tensors.push_back(rows_of(source.key, rotate));
        tensors.push_back(rows_of(source.value, false));
        tensors.push_back(rows_of(source.grad_key, rotate));
        tensors.push_back(rows_of(source.grad_value, false));
      }
    }
    std::vector<RowSpan> spans;
    for (size_t g = 0; g < groups_.size(); ++g) {
      const Group& group = groups_[g];
      problems_[g].first_query_span = static_cast<int64_t>(spans.size());
      for (size_t u = 0; u < group.units.size(); ++u) {
        const Unit& unit = group.units[u];
        const HeadRows& rows = in_.segments[unit.task].queries;
        spans.push_back({rows.slot[unit.head] + unit.query_begin * rows.step, rows.step,
                         first_position(unit, rows.first[unit.head] + unit.query_begin),
                         static_cast<int64_t>(u) * group.query_rows,
                         static_cast<int32_t>(unit.head), 0,
                         static_cast<int32_t>(group.query_rows)});
      }
      problems_[g].first_key_span = static_cast<int64_t>(spans.size());
      for (size_t u = 0; u < group.units.size(); ++u) {
        const Unit& unit = group.units[u];
        int64_t packed_row = static_cast<int64_t>(u) * group.key_rows;
        for (const KeyPiece& piece : unit.keys) {
          const HeadRows& rows = in_.segments[unit.task].keys[piece.source].rows;
          spans.push_back({rows.slot[unit.head] + piece.begin * rows.step, rows.step,
                           first_position(unit, rows.first[unit.head] + piece.begin), packed_row,
                           static_cast<int32_t>(unit.head),
                           static_cast<int32_t>(first_source[unit.task] + piece.source),
                           static_cast<int32_t>(piece.count)});
          packed_row += piece.count;
          problems_[g].longest_key_span = std::max(problems_[g].longest_key_span, piece.count);
        }
      }
      problems_[g].key_spans = static_cast<int64_t>(spans.size()) - problems_[g].first_key_span;
    }
    tensors_ = reinterpret_cast<const StridedRows*>(workspace);
    char* const span_memory =
        workspace + aligned_bytes(static_cast<int64_t>(tensors.size() * sizeof(StridedRows)));
    spans_ = reinterpret_cast<const RowSpan*>(span_memory);
    const auto copy = [&](void* to, const auto& list) {
      longnet::upload(context_, to, list.data(),
                      static_cast<int64_t>(list.size() * sizeof(list[0])));
    };
    copy(workspace, tensors);
    copy(span_memory, spans);
    operands_ = workspace + description_bytes(key_source_count(in_.segments),
                                              static_cast<int64_t>(spans.size()));
  }

  SpanList query_list(const Group& group, const Problem& p, QueryTensor tensor) const {
    return {spans_ + p.first_query_span,
            tensors_ + tensor,
            0,
            static_cast<int64_t>(group.units.size()),
            group.query_rows,
            size_.batch,
            static_cast<int64_t>(group.units.size()) * group.query_rows,
            size_.head_dim};
  }
  SpanList key_list(const Group& group, const Problem& p, KeyTensor tensor) const {
    return {spans_ + p.first_key_span,
            tensors_ + kQueryTensors + tensor,
            kKeyTensors,
            p.key_spans,
            p.longest_key_span,
            size_.batch,
            static_cast<int64_t>(group.units.size()) * group.key_rows,
            size_.head_dim};
  }

  // --- 4. pack, attend, merge or add

  void run(const Group& group, const Problem& p) {
    const OperandLayout layout(static_cast<int64_t>(group.units.size()), group.query_rows,
                               group.key_rows, size_, in_.backward);
    const cuda::RowPositions none, query_positions{options_.rotary, false, options_.dilation},
        key_positions{options_.rotary, true, options_.dilation};
    const cuda::LseRows lse{static_cast<float*>(in_.lse.data), in_.lse.stride[0], in_.lse.stride[1],
                            in_.lse.stride[2]};
    const auto place = [&](const Operand& operand, int64_t at, const SpanList& list, DType type,
                           const cuda::RowPositions& positions) -> const void* {
      if (!operand.packed) return operand.data;
      cuda::sdpa_pack_rows(context_, operands_ + at, list, type, positions);
      return operands_ + at;
    };
    cudnn::Operands o;
    o.query =
        place(p.query, layout.query, query_list(group, p, kQuery), DType::kBF16, query_positions);
    o.key = place(p.key, layout.key, key_list(group, p, kKey), DType::kBF16, key_positions);
    o.value = place(p.value, layout.value, key_list(group, p, kValue), DType::kBF16, none);
    o.out = operands_ + layout.out;
    o.lse = reinterpret_cast<float*>(operands_ + layout.lse);
    o.workspace = operands_ + layout.library;
    if (!in_.backward) {
      cudnn::run(context_, p.shape, o);
      if (parts_ == Parts::kAll)
        cuda::sdpa_merge_rows(context_, query_list(group, p, kOut), lse, o.out, o.lse);
      return;
    }
    if (parts_ == Parts::kAll)
      cuda::sdpa_pack_results(context_, o.out, o.lse, query_list(group, p, kOut), lse);
    o.grad_out = place(p.grad_out, layout.grad_out, query_list(group, p, kGradOut),
                       in_.grad_out.dtype, none);
    o.grad_query = operands_ + layout.grad_query;
    o.grad_key = operands_ + layout.grad_key;
    o.grad_value = operands_ + layout.grad_value;
    cudnn::run(context_, p.shape, o);
    if (parts_ != Parts::kAll) return;
    cuda::sdpa_add_rows(context_, query_list(group, p, kGradQuery), o.grad_query, query_positions);
    cuda::sdpa_add_rows(context_, key_list(group, p, kGradKey), o.grad_key, key_positions);
    cuda::sdpa_add_rows(context_, key_list(group, p, kGradValue), o.grad_value, none);
  }

  Context& context_;
  const Inputs& in_;
  const AttentionOptions& options_;
  AttentionSize size_;
  std::vector<Group> groups_;
  std::vector<Problem> problems_;
  Parts parts_ = Parts::kAll;
  const StridedRows* tensors_ = nullptr;  // device memory, as the two below
  const RowSpan* spans_ = nullptr;
  char* operands_ = nullptr;
};

Inputs inputs(const AttentionForward& tensors) {
  return {.query = tensors.query,
          .out = tensors.out,
          .lse = tensors.lse,
          .grad_out = {},
          .grad_query = {},
          .segments = tensors.segments,
          .backward = false};
}

Inputs inputs(const AttentionBackward& tensors) {
  return {.query = tensors.query,
          .out = tensors.out,
          .lse = tensors.lse,
          .grad_out = tensors.grad_out,
          .grad_query = tensors.grad_query,
          .segments = tensors.segments,
          .backward = true};
}

Outcome try_call(Context& context, const Inputs& in, const AttentionOptions& options,
                 void* workspace, bool whole, Parts parts) {
  Outcome outcome;
  outcome.refusal = tensor_refusal(context, in, options);
  if (!outcome.refusal.empty()) return outcome;
  Call call(context, in, options);
  std::vector<bool> refused(in.segments.size(), false);
  const std::string reason = call.refusal(refused);
  if (reason.empty()) {
    call.run(workspace, parts);
    outcome.description = call.description();
    return outcome;
  }
  std::vector<SegmentTask> taken;
  for (size_t t = 0; t < refused.size(); ++t)
    (refused[t] ? outcome.rest : taken).push_back(in.segments[t]);
  Inputs fewer = in;
  fewer.segments = taken;
  std::optional<Call> part;
  if (!whole && !taken.empty()) part.emplace(context, fewer, options);
  // Fewer segments may form other groups, and the library may refuse those.
  if (!part || part->groups() == 0 || !part->refusal(refused).empty()) {
    outcome.rest.clear();
    outcome.refusal = reason;
    return outcome;
  }
  part->run(workspace, parts);
  outcome.description = fmt::format("{}; {} of {} segments by another: {}", part->description(),
                                    outcome.rest.size(), refused.size(), reason);
  return outcome;
}

}  // namespace

std::string refusal(const Context& context, const AttentionSize& size) {
  if (context.device().type != DeviceType::kCUDA) return "not on a GPU";
  if (std::string reason = cudnn::unavailable(); !reason.empty()) return reason;
  if (size.dtype != DType::kBF16) return "query, key and value are f32";
  if (size.head_dim % 8 != 0) return fmt::format("D {} is no multiple of 8", size.head_dim);
  return "";
}

int64_t workspace_bytes(const AttentionSize& size, std::span<const SegmentTask> segments,
                        bool backward) {
  int64_t most = 0;
  for (const bool causal : {false, true}) {  // the mask changes the problems and is not known here
    int64_t operands = 0, spans = 0;
    for (const GroupBound& g : largest_groups(
             segments, {.causal = causal, .batch = size.batch, .head_dim = size.head_dim})) {
      operands = std::max(
          operands, OperandLayout(g.group_units, g.query_rows, g.key_rows, size, backward).bytes);
      spans += g.units + g.pieces;
    }
    most = std::max(most, operands + description_bytes(key_source_count(segments), spans));
  }
  return most;
}

Outcome try_forward(Context& context, const AttentionForward& tensors,
                    const AttentionOptions& options, void* workspace, bool whole) {
  return try_call(context, inputs(tensors), options, workspace, whole, Parts::kAll);
}

Outcome try_backward(Context& context, const AttentionBackward& tensors,
                     const AttentionOptions& options, void* workspace, bool whole) {
  return try_call(context, inputs(tensors), options, workspace, whole, Parts::kAll);
}

std::string run_unmerged(Context& context, const AttentionForward& tensors,
                         const AttentionOptions& options, void* workspace) {
  return try_call(context, inputs(tensors), options, workspace, true, Parts::kUnmerged).refusal;
}

std::string run_unmerged(Context& context, const AttentionBackward& tensors,
                         const AttentionOptions& options, void* workspace) {
  return try_call(context, inputs(tensors), options, workspace, true, Parts::kUnmerged).refusal;
}

}  // namespace longnet::sdpa
