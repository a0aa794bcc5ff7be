// Dispatcher of attention: checks arguments, counts FLOPs, and runs the device's twin; on a GPU the
// one that Context::attention() forces, or the first that supports the call.
#include "kernels/attention/attention.h"

#include <algorithm>
#include <limits>
#include <set>
#include <tuple>
#include <type_traits>

#include "core/bf16.h"
#include "core/log.h"
#include "kernels/attention/attention_cpu.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_native.h"
#include "kernels/attention/attention_sdpa.h"
#include "kernels/fill/fill.h"

namespace longnet {
namespace {

void check_shape(const char* name, const TensorView& x, DType dtype,
                 std::initializer_list<int64_t> shape) {
  bool equal = x.dtype == dtype && x.rank == static_cast<int>(shape.size());
  if (equal) equal = std::equal(shape.begin(), shape.end(), x.shape.begin());
  LN_CHECK(equal, "{} is {}, wanted {}", name, x.describe(), [&] {
    TensorView wanted(nullptr, dtype, shape);
    return wanted.describe();
  }());
  LN_CHECK(x.rank < 4 || x.shape[3] <= 1 || x.stride[3] == 1, "{}: the last axis is not contiguous",
           name);
}

/// As check_shape(), for tensors that may be f32 or bf16.
void check_float_shape(const char* name, const TensorView& x,
                       std::initializer_list<int64_t> shape) {
  check_shape(name, x, x.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32, shape);
}

/// [B, L, H, D] of a call; everything else is checked against it.
struct Shape {
  int64_t batch, tokens, heads, head_dim;
  explicit Shape(const TensorView& query)
      : batch(query.shape[0]),
        tokens(query.shape[1]),
        heads(query.shape[2]),
        head_dim(query.shape[3]) {
    LN_CHECK(query.rank == 4, "query is {}, wanted [B, L, H, D]", query.describe());
    LN_CHECK(head_dim >= 8 && head_dim <= 256, "head dimension {}, allowed are 8 to 256", head_dim);
    check_float_shape("query", query, {batch, tokens, heads, head_dim});
  }
};

void check_rows(const char* name, const HeadRows& rows, int64_t heads, int64_t slots) {
  const size_t n = static_cast<size_t>(heads);
  LN_CHECK(rows.slot.size() == n && rows.first.size() == n && rows.count.size() == n,
           "{} rows of {}, {}, {} heads, wanted {}", name, rows.slot.size(), rows.first.size(),
           rows.count.size(), heads);
  for (size_t h = 0; h < n; ++h) {
    LN_CHECK(rows.count[h] >= 0 && rows.first[h] >= 0, "{} rows {} + {} of head {}", name,
             rows.first[h], rows.count[h], h);
    if (rows.count[h] == 0) continue;
    LN_CHECK(rows.slot[h] >= 0 && rows.slot[h] + (rows.count[h] - 1) * rows.step < slots,
             "{} rows of head {}: slot {} + {} x {} of {}", name, h, rows.slot[h], rows.count[h],
             rows.step, slots);
  }
}

void check_options(const AttentionOptions& options, const Shape& shape) {
  LN_CHECK(options.dilation >= 1, "dilation {}", options.dilation);
  LN_CHECK(static_cast<int64_t>(options.head_offset.size()) == shape.heads,
           "{} head offsets, wanted {}", options.head_offset.size(), shape.heads);
  if (options.rotary != nullptr && options.rotary->enabled())
    LN_CHECK(options.rotary->head_dim() == shape.head_dim, "rotary table of D = {}, wanted {}",
             options.rotary->head_dim(), shape.head_dim);
  for (const TensorView& limit : {options.first_visible, options.last_visible})
    if (limit.defined()) check_shape("visibility", limit, DType::kI64, {shape.batch, shape.tokens});
}

/// Checks the tasks and returns how many (query, key) pairs they keep, over all sequences.
double check_segments(std::span<const SegmentTask> segments, const AttentionOptions& options,
                      const Shape& shape, bool backward) {
  double pairs = 0;
  for (const SegmentTask& task : segments) {
    check_rows("query", task.queries, shape.heads, shape.tokens);
    for (const KeySource& source : task.keys) {
      const int64_t slots = source.key.shape[1];
      const std::initializer_list<int64_t> wanted = {shape.batch, slots, shape.heads,
                                                     shape.head_dim};
      check_float_shape("key", source.key, wanted);
      check_float_shape("value", source.value, wanted);
      if (backward) {
        check_shape("grad_key", source.grad_key, DType::kF32, wanted);
        check_shape("grad_value", source.grad_value, DType::kF32, wanted);
      }
      check_rows("key", source.rows, shape.heads, slots);
    }
    for (int64_t h = 0; h < shape.heads; ++h) {
      const int64_t query_first = task.queries.first[h], queries = task.queries.count[h];
      int64_t next_row = 0;
      for (const KeySource& source : task.keys) {
        const int64_t first = source.rows.first[h], keys = source.rows.count[h];
        if (keys == 0) continue;
        LN_CHECK(first >= next_row, "key rows of head {} begin at {} after row {}", h, first,
                 next_row);
        next_row = first + keys;
        if (!options.causal) {
          pairs += static_cast<double>(queries) * static_cast<double>(keys);
          continue;
        }
        // Pairs of the queries with row numbers <= x: sum of min(max(i - first + 1, 0), keys).
        const auto up_to = [&](int64_t x) {
          const double n = static_cast<double>(std::max<int64_t>(x - first + 1, 0));
          const double k = static_cast<double>(keys);
          return n <= k ? n * (n + 1) / 2 : k * (k + 1) / 2 + (n - k) * k;
        };
        pairs += up_to(query_first + queries - 1) - up_to(query_first - 1);
      }
    }
  }
  return pairs * static_cast<double>(shape.batch);
}

bool allows(const Context& context, AttentionChoice choice) {
  return context.attention() == AttentionChoice::kAuto || context.attention() == choice;
}

/// What the log has said already; kept with the Context.
struct Said {
  std::set<std::tuple<int64_t, int64_t, AttentionChoice, bool>> lines;
};

int64_t branch_length(std::span<const SegmentTask> segments, const AttentionOptions& options) {
  int64_t length = options.segment_length;
  if (length == 0)
    for (const SegmentTask& task : segments)
      length = std::max(length, task.segment.end - task.segment.begin);
  return length;
}

/// Once per branch and implementation; the backward speaks up only where it differs.
void log_choice(Context& context, std::span<const SegmentTask> segments,
                const AttentionOptions& options, bool backward, AttentionChoice choice,
                const std::string& why) {
  const int64_t length = branch_length(segments, options);
  auto& lines = context.kept<Said>().lines;
  const std::tuple line{length, options.dilation, choice, backward};
  if (lines.count(line) || (backward && lines.count({length, options.dilation, choice, false})))
    return;
  lines.insert(line);
  log_info("attention of branch ({}, {}){}: {}; {}", length, options.dilation,
           backward ? ", backward" : "", attention_choice_name(choice), why);
}

/// What a call on the GPU can be given to; segments: of the call, or those left of it.
template <typename Tensors>
struct Implementations {
  sdpa::Outcome (*cudnn)(Context&, const Tensors&, const AttentionOptions&, void*, bool whole);
  void (*native)(Context&, const Tensors&, const AttentionOptions&, void*);
  void (*plain)(Context&, const Tensors&, const AttentionOptions&, void*);
};

/// run.attention names an implementation that does not take the call.
[[noreturn]] void refuse(const Context& context, std::span<const SegmentTask> segments,
                         const AttentionOptions& options, bool backward,
                         const std::string& reason) {
  throw Error("run.attention={}: {}branch ({}, {}): {}; set run.attention=auto",
              attention_choice_name(context.attention()), backward ? "backward of " : "",
              branch_length(segments, options), options.dilation, reason);
}

/// Runs a call on the GPU: by cuDNN, else the native kernel, else the plain one. Segments that
/// cuDNN leaves go the same way.
template <typename Tensors>
void run_on_gpu(Context& context, const Tensors& tensors, const AttentionOptions& options,
                void* workspace, const Implementations<Tensors>& run) {
  constexpr bool backward = std::is_same_v<Tensors, AttentionBackward>;
  const AttentionChoice asked = context.attention();
  const auto log = [&](AttentionChoice choice, const std::string& why) {
    log_choice(context, tensors.segments, options, backward, choice, why);
  };
  std::string why = asked == AttentionChoice::kAuto ? "" : "as run.attention asks";
  Tensors left = tensors;
  sdpa::Outcome outcome;
  if (allows(context, AttentionChoice::kCudnn)) {
    const bool only = asked == AttentionChoice::kCudnn;
    outcome = run.cudnn(context, tensors, options, workspace, only);
    if (outcome.refusal.empty()) {
      log(AttentionChoice::kCudnn, outcome.description);
      if (outcome.rest.empty()) return;
      left.segments = outcome.rest;
      why = "segments that cudnn leaves";
    } else {
      if (only) refuse(context, tensors.segments, options, backward, outcome.refusal);
      why = "cudnn: " + outcome.refusal;
    }
  }
  if (allows(context, AttentionChoice::kNative)) {
    const std::string refusal = cuda::native_refusal(context, left, options);
    if (refusal.empty()) {
      log(AttentionChoice::kNative, why);
      return run.native(context, left, options, workspace);
    }
    if (asked == AttentionChoice::kNative)
      refuse(context, tensors.segments, options, backward, refusal);
    why += "; native: " + refusal;
  }
  log(AttentionChoice::kPlain, why);
  run.plain(context, left, options, workspace);
}

}  // namespace

int64_t attention_workspace_bytes(const Context& context, const AttentionSize& size,
                                  std::span<const SegmentTask> segments, bool backward) {
  LN_CHECK(size.head_dim >= 8 && size.head_dim <= 256, "head dimension {}, allowed are 8 to 256",
           size.head_dim);
  if (!context.on_gpu())
    return attention::cpu_workspace_bytes(context, size.head_dim, segments, backward);
  int64_t bytes = cuda::attention_workspace_bytes(context, size.head_dim, segments, backward);
  if (allows(context, AttentionChoice::kCudnn) && sdpa::refusal(context, size).empty())
    bytes = std::max(bytes, sdpa::workspace_bytes(size, segments, backward));
  if (allows(context, AttentionChoice::kNative) && cuda::native_refusal(context, size).empty()) {
    bytes = std::max(bytes, cuda::native_forward_bytes(size, segments));
    if (backward) bytes = std::max(bytes, cuda::native_backward_bytes(size, segments));
  }
  return bytes;
}

void attention_begin(Context& context, const TensorView& out, const TensorView& lse) {
  fill(context, out, 0.0f);
  fill(context, lse, -std::numeric_limits<float>::infinity());
}

void attention_forward(Context& context, const AttentionForward& tensors,
                       const AttentionOptions& options, void* workspace) {
  const Shape shape(tensors.query);
  check_shape("out", tensors.out, DType::kF32,
              {shape.batch, shape.tokens, shape.heads, shape.head_dim});
  check_shape("lse", tensors.lse, DType::kF32, {shape.batch, shape.heads, shape.tokens});
  check_options(options, shape);
  const double pairs = check_segments(tensors.segments, options, shape, false);
  context.work().attention_flops += 4.0 * static_cast<double>(shape.head_dim) * pairs;
  if (context.counting() || pairs == 0) return;
  if (context.on_gpu())
    return run_on_gpu<AttentionForward>(
        context, tensors, options, workspace,
        {sdpa::try_forward, cuda::native_forward, cuda::attention_forward});
  attention::cpu_forward(context, tensors, options, workspace);
}

void attention_delta(Context& context, const TensorView& delta, const TensorView& grad_out,
                     const TensorView& out) {
  LN_CHECK(out.rank == 4, "out is {}, wanted [B, L, H, D]", out.describe());
  const int64_t batch = out.shape[0], tokens = out.shape[1], heads = out.shape[2];
  check_shape("out", out, DType::kF32, {batch, tokens, heads, out.shape[3]});
  check_float_shape("grad_out", grad_out, {batch, tokens, heads, out.shape[3]});
  check_shape("delta", delta, DType::kF32, {batch, heads, tokens});
  if (context.counting() || out.elements() == 0) return;
  if (context.on_gpu()) return cuda::attention_delta(context, delta, grad_out, out);
  attention::cpu_delta(context, delta, grad_out, out);
}

void attention_backward(Context& context, const AttentionBackward& tensors,
                        const AttentionOptions& options, void* workspace) {
  const Shape shape(tensors.query);
  const std::initializer_list<int64_t> rows = {shape.batch, shape.tokens, shape.heads,
                                               shape.head_dim};
  check_shape("grad_query", tensors.grad_query, DType::kF32, rows);
  check_float_shape("grad_out", tensors.grad_out, rows);
  check_shape("lse", tensors.lse, DType::kF32, {shape.batch, shape.heads, shape.tokens});
  check_shape("delta", tensors.delta, DType::kF32, {shape.batch, shape.heads, shape.tokens});
  if (tensors.out.defined()) check_shape("out", tensors.out, DType::kF32, rows);
  check_options(options, shape);
  const double pairs = check_segments(tensors.segments, options, shape, true);
  // Counts the four products of the gradients; q k^T, which every twin recomputes, is not progress.
  context.work().attention_flops += 8.0 * static_cast<double>(shape.head_dim) * pairs;
  if (context.counting() || pairs == 0) return;
  if (context.on_gpu())
    return run_on_gpu<AttentionBackward>(
        context, tensors, options, workspace,
        {sdpa::try_backward, cuda::native_backward, cuda::attention_backward});
  attention::cpu_backward(context, tensors, options, workspace);
}

namespace {

/// Shapes shared by pack and unpack; returns false if there is nothing to do.
bool check_pack(Context& context, const TensorView& chunk_key, const TensorView& chunk_value,
                const TensorView& key, const TensorView& value, const HeadRows& rows,
                std::span<const int64_t> chunk_slot, const AttentionOptions& options) {
  const Shape shape(key);
  check_float_shape("value", value, {shape.batch, shape.tokens, shape.heads, shape.head_dim});
  LN_CHECK(chunk_key.rank == 3, "chunk is {}, wanted [B, R, D]", chunk_key.describe());
  const int64_t chunk_rows = chunk_key.shape[1];
  for (const TensorView& chunk : {chunk_key, chunk_value}) {
    check_float_shape("chunk", chunk, {shape.batch, chunk_rows, shape.head_dim});
    LN_CHECK(chunk.stride[2] == 1, "chunk: the last axis is not contiguous");
  }
  check_options(options, shape);
  check_rows("local", rows, shape.heads, shape.tokens);
  LN_CHECK(static_cast<int64_t>(chunk_slot.size()) == shape.heads, "{} chunk slots, wanted {}",
           chunk_slot.size(), shape.heads);
  for (int64_t h = 0; h < shape.heads; ++h)
    LN_CHECK(
        rows.count[h] == 0 || (chunk_slot[h] >= 0 && chunk_slot[h] + rows.count[h] <= chunk_rows),
        "chunk rows {} + {} of {}", chunk_slot[h], rows.count[h], chunk_rows);
  return !context.counting() && shape.batch > 0 && chunk_rows > 0;
}

}  // namespace

void attention_pack_rows(Context& context, const TensorView& chunk_key,
                         const TensorView& chunk_value, const TensorView& key,
                         const TensorView& value, const HeadRows& rows,
                         std::span<const int64_t> chunk_slot, const SegmentTask& task,
                         const AttentionOptions& options) {
  if (!check_pack(context, chunk_key, chunk_value, key, value, rows, chunk_slot, options)) return;
  const auto twin = context.on_gpu() ? cuda::attention_pack_rows : attention::cpu_pack_rows;
  twin(context, chunk_key, chunk_value, key, value, rows, chunk_slot, task, options);
}

void attention_unpack_rows_add(Context& context, const TensorView& grad_key,
                               const TensorView& grad_value, const TensorView& chunk_grad_key,
                               const TensorView& chunk_grad_value, const HeadRows& rows,
                               std::span<const int64_t> chunk_slot, const SegmentTask& task,
                               const AttentionOptions& options) {
  for (const TensorView* view : {&grad_key, &grad_value, &chunk_grad_key, &chunk_grad_value})
    LN_CHECK(view->dtype == DType::kF32, "gradient {}: sums of gradients are f32",
             view->describe());
  if (!check_pack(context, chunk_grad_key, chunk_grad_value, grad_key, grad_value, rows, chunk_slot,
                  options))
    return;
  const auto twin =
      context.on_gpu() ? cuda::attention_unpack_rows_add : attention::cpu_unpack_rows_add;
  twin(context, grad_key, grad_value, chunk_grad_key, chunk_grad_value, rows, chunk_slot, task,
       options);
}

}  // namespace longnet
