// See attention_bench.h.
#include "kernels/attention/attention_bench.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <span>

#include "core/arena.h"
#include "core/bf16.h"
#include "core/clock.h"
#include "core/device_runtime.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_cudnn.h"
#include "kernels/attention/attention_sdpa.h"
#include "kernels/attention/segment_tasks.h"
#include "kernels/fill/fill.h"
#include "kernels/machine/machine.h"
#include "kernels/random/random.h"

namespace longnet {
namespace {

constexpr double kSampleSeconds = 0.02;  // of a GPU: launches and waits are far below one per cent
constexpr int64_t kPeriod = 1'048'573;   // of the inputs; a prime, so that rows differ

/// Products that a backward does per product that Context::work() counts: q k^T is computed again.
constexpr double kBackwardExecuted = 10.0 / 8.0;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Samples {
  std::vector<double> seconds;       // of one call
  std::vector<double> host_seconds;  // likewise, until the host has started it
  int64_t calls = 1;                 // per sample
};

/// prepare: called before every sample, its time is not counted.
Samples time_samples(Context& context, int repetitions, const std::function<void()>& prepare,
                     const std::function<void()>& call) {
  Samples samples;
  const auto sample = [&] {
    prepare();
    context.wait();
    const double start = seconds_now();
    for (int64_t i = 0; i < samples.calls; ++i) call();
    const double started = seconds_now();
    context.wait();
    samples.seconds.push_back((seconds_now() - start) / static_cast<double>(samples.calls));
    samples.host_seconds.push_back((started - start) / static_cast<double>(samples.calls));
  };
  sample();
  if (context.on_gpu()) {
    sample();
    samples.calls = std::max<int64_t>(1, std::llround(kSampleSeconds / samples.seconds.back()));
  }
  samples.seconds.clear();
  samples.host_seconds.clear();
  for (int i = 0; i < repetitions; ++i) sample();
  return samples;
}

/// executed: FLOPs done per FLOP that Context::work() counts.
AttentionBenchTiming time_calls(Context& context, int repetitions, double executed,
                                const std::function<void()>& prepare,
                                const std::function<void()>& call, int64_t& calls_per_sample) {
  AttentionBenchTiming timing;
  const double before = context.work().attention_flops;
  prepare();
  call();
  timing.executed_flops = executed * (context.work().attention_flops - before);
  const Samples samples = time_samples(context, repetitions, prepare, call);
  calls_per_sample = samples.calls;
  timing.median_seconds = median(samples.seconds);
  timing.fastest_seconds = *std::min_element(samples.seconds.begin(), samples.seconds.end());
  timing.slowest_seconds = *std::max_element(samples.seconds.begin(), samples.seconds.end());
  if (context.on_gpu()) timing.host_seconds = median(samples.host_seconds);
  timing.executed_gflops = timing.executed_flops / timing.median_seconds / 1e9;
  return timing;
}

/// Largest difference over the kept rows of the given tasks, relative to the largest expected value
/// or to 0.1, if that is larger: with one key per query the gradient of the query is zero but for
/// rounding. Infinite if a value is not a number.
double row_error(const TensorView& actual, const TensorView& expected,
                 const std::vector<SegmentTask>& tasks) {
  double error = 0, largest = 0.1;
  for (const SegmentTask& task : tasks)
    for (size_t h = 0; h < task.queries.count.size(); ++h)
      for (int64_t i = 0; i < task.queries.count[h]; ++i) {
        const int64_t at = (task.queries.slot[h] + i * task.queries.step) * actual.stride[1] +
                           static_cast<int64_t>(h) * actual.stride[2];
        for (int64_t d = 0; d < actual.shape[3]; ++d) {
          const double apart = std::abs(double(actual.f32()[at + d]) - expected.f32()[at + d]);
          if (std::isnan(apart)) return INFINITY;
          error = std::max(error, apart);
          largest = std::max(largest, std::abs(double(expected.f32()[at + d])));
        }
      }
  return error / largest;
}

Context host_context(const Context& context) {
  return Context({.device = {}, .threads = context.threads(), .counting = false});
}

/// What shares are of: cuDNN alone on plain problems of the same number and sizes. Every operand is
/// contiguous, [B, heads, rows, D], and was there before: the first numbers of the inputs.
class PlainLibrary {
 public:
  PlainLibrary(Context& context, Arena& arena, const AttentionBenchOptions& options,
               const AttentionBenchInputs& inputs, std::span<const SegmentTask> tasks)
      : context_(context) {
    int64_t query_at = 0, key_at = 0, workspace_bytes = 1;  // elements that are taken already
    for (const sdpa::Group& group : sdpa::make_groups(
             tasks,
             {.causal = options.causal, .batch = options.batch, .head_dim = options.head_dim})) {
      Problem p;
      p.shape = sdpa::packed_shape(group, options.batch, options.head_dim,
                                   static_cast<float>(1.0 / std::sqrt(double(options.head_dim))));
      const sdpa::Shape& s = p.shape;
      const int64_t entries = s.batch * s.heads, queries = entries * s.query_rows * s.head_dim,
                    keys = entries * s.key_rows * s.head_dim;
      const auto read = [](const AttentionBenchInputs::Rows& x, int64_t at, int64_t count) {
        return x.device.view({x.device.elements()}).slice(0, at, count).data;
      };
      p.operands.query = read(inputs.query, query_at, queries);
      p.operands.key = read(inputs.key, key_at, keys);
      p.operands.value = read(inputs.value, key_at, keys);
      p.operands.grad_out = read(inputs.grad_out, query_at, queries);
      p.operands.out = arena.allocate_bytes(2 * queries);
      p.operands.lse = static_cast<float*>(arena.allocate_bytes(4 * entries * s.query_rows));
      p.operands.grad_query = arena.allocate_bytes(2 * queries);
      p.operands.grad_key = arena.allocate_bytes(2 * keys);
      p.operands.grad_value = arena.allocate_bytes(2 * keys);
      query_at += queries;
      key_at += keys;
      p.backward = p.shape;
      p.backward.backward = true;
      p.backward.grad_out = s.query;
      for (const sdpa::Shape& shape : {p.shape, p.backward}) {
        workspace_bytes = std::max(workspace_bytes, sdpa::library_workspace_bytes(shape));
        taken_ = taken_ && cudnn::refusal(context_, shape).empty();
      }
      problems_.push_back(p);
    }
    void* const workspace = arena.allocate_bytes(workspace_bytes);
    for (Problem& p : problems_) p.operands.workspace = workspace;
  }

  /// Whether cuDNN takes all of them, both ways.
  bool taken() const { return taken_; }
  /// The backward reads what the forward has left.
  void run(bool backward) {
    for (const Problem& p : problems_)
      cudnn::run(context_, backward ? p.backward : p.shape, p.operands);
  }

 private:
  struct Problem {
    sdpa::Shape shape, backward;
    cudnn::Operands operands;
  };
  Context& context_;
  std::vector<Problem> problems_;
  bool taken_ = true;
};

/// What a run writes, on the device; its inputs are another's.
class Bench {
 public:
  Bench(Context& context, const AttentionBenchOptions& options, const AttentionBenchInputs& inputs)
      : context_(context),
        options_(options),
        inputs_(inputs),
        plan_(options.tokens, 1, 0, options.heads, options.branches, HeadOffset::kInterleaved),
        rotary_(options.head_dim, {options.position, 10000, 512}),
        host_(host_context(context)),
        arena_("bench", false, context.device()),
        host_arena_("bench host") {
    for (TensorView* x : {&out_, &grad_query_, &grad_key_, &grad_value_}) {
      *x = rows(arena_, DType::kF32);
      fill(context_, *x, 0.0f);
    }
    lse_ = arena_.allocate(DType::kF32, {options_.batch, options_.heads, options_.tokens});
    delta_ = arena_.allocate(DType::kF32, {options_.batch, options_.heads, options_.tokens});
    int64_t workspace_bytes = 0;
    for (int b = 0; b < branches(); ++b) {
      tasks_.push_back(local_segment_tasks(plan_, b, inputs.key.device, inputs.value.device,
                                           grad_key_, grad_value_));
      offsets_.push_back(plan_.head_offsets(b));
      for (const bool backward : {false, true})
        workspace_bytes = std::max(
            workspace_bytes, attention_workspace_bytes(context_, size(), tasks_.back(), backward));
    }
    workspace_ = arena_.allocate_bytes(workspace_bytes);
  }

  AttentionBenchResult run() {
    AttentionBenchResult result;
    measure_limit(result);
    std::vector<double> begin_seconds;
    result.forward = time_calls(
        context_, options_.repetitions, 1.0,
        [&] {
          context_.wait();
          const double start = seconds_now();
          attention_begin(context_, out_, lse_);
          context_.wait();
          begin_seconds.push_back(seconds_now() - start);
        },
        [&] { forward(); }, result.calls_per_sample);
    result.begin_seconds = median(begin_seconds);
    attention_begin(context_, out_, lse_);  // samples of several calls have counted keys repeatedly
    forward();
    attention_delta(context_, delta_, inputs_.grad_out.device, out_);
    int64_t calls = 1;
    result.backward = time_calls(
        context_, options_.repetitions, kBackwardExecuted, [] {}, [&] { backward(); }, calls);
    time_library(result);
    measure_limit(result);
    for (AttentionBenchTiming* t : {&result.forward, &result.backward}) {
      if (result.fma_gflops > 0) t->share_of_fma = t->executed_gflops / result.fma_gflops;
      if (result.matmul_gflops > 0) t->share_of_matmul = t->executed_gflops / result.matmul_gflops;
      t->share_of_sdpa = t->sdpa_seconds / t->median_seconds;
    }
    if (branches() == 1) check(result);
    return result;
  }

 private:
  int branches() const { return static_cast<int>(options_.branches.size()); }
  AttentionSize size() const { return {options_.batch, options_.head_dim, options_.dtype}; }

  TensorView rows(Arena& arena, DType dtype) {
    return arena.allocate(dtype,
                          {options_.batch, options_.tokens, options_.heads, options_.head_dim});
  }
  TensorView host_rows() {
    const TensorView x = rows(host_arena_, DType::kF32);
    fill(host_, x, 0.0f);
    return x;
  }

  /// A copy of a device's f32 tensor.
  TensorView download(const TensorView& x) {
    if (!context_.on_gpu()) return x;
    TensorView copy = x;
    copy.device = {};
    copy.data = host_arena_.allocate_bytes(x.bytes());
    device_runtime::copy_to_host(copy.data, x.data, x.bytes(), context_.stream());
    context_.wait();
    return copy;
  }

  AttentionOptions attention_options(int b) const {
    AttentionOptions o;
    o.dilation = options_.branches[b].dilation;
    o.segment_length = options_.branches[b].segment_length;
    o.head_offset = offsets_[b];
    o.rotary = rotary_.enabled() ? &rotary_ : nullptr;
    o.scale = static_cast<float>(1.0 / std::sqrt(double(options_.head_dim)));
    o.causal = options_.causal;
    return o;
  }
  AttentionForward forward_tensors(int b) const {
    return {out_, lse_, inputs_.query.device, tasks_[b]};
  }
  AttentionBackward backward_tensors(int b) const {
    return {grad_query_, inputs_.grad_out.device, lse_, delta_, inputs_.query.device, tasks_[b],
            out_};
  }
  void forward() {
    for (int b = 0; b < branches(); ++b)
      attention_forward(context_, forward_tensors(b), attention_options(b), workspace_);
  }
  void backward() {
    for (int b = 0; b < branches(); ++b)
      attention_backward(context_, backward_tensors(b), attention_options(b), workspace_);
  }

  void measure_limit(AttentionBenchResult& result) {
    double& limit = context_.on_gpu() ? result.matmul_gflops : result.fma_gflops;
    limit = options_.limit_gflops
                ? *options_.limit_gflops
                : std::max(limit, attention_bench_limit(context_, options_.dtype));
  }

  bool times_library() const {
    return context_.attention() != AttentionChoice::kPlain &&
           sdpa::refusal(context_, size()).empty();
  }
  /// cuDNN alone, and our calls without merge and sums. Leaves out_ and lse_ as one forward does.
  void time_library(AttentionBenchResult& result) {
    if (!times_library()) return;
    std::vector<PlainLibrary> library;
    for (const std::vector<SegmentTask>& tasks : tasks_) {
      library.emplace_back(context_, arena_, options_, inputs_, tasks);
      if (!library.back().taken()) return;
    }
    attention_begin(context_, out_, lse_);
    forward();
    for (AttentionBenchTiming* t : {&result.forward, &result.backward}) {
      const bool backward = t == &result.backward;
      const auto time = [&](const auto& call, double& seconds, double& host_seconds) {
        const Samples samples = time_samples(
            context_, options_.repetitions, [] {}, call);
        seconds = median(samples.seconds);
        host_seconds = median(samples.host_seconds);
      };
      time(
          [&] {
            for (PlainLibrary& branch : library) branch.run(backward);
          },
          t->sdpa_seconds, t->sdpa_host_seconds);
      if (context_.attention() == AttentionChoice::kNative) continue;
      if (backward) this->backward();  // leaves merged results in the workspace
      if (unmerged(backward))
        time([&] { unmerged(backward); }, t->unmerged_seconds, t->unmerged_host_seconds);
    }
  }
  /// All that forward() or backward() does through cuDNN, but results are not merged, nor merged
  /// ones packed, and gradients not added. False if cuDNN refuses one of the calls.
  bool unmerged(bool backward) {
    for (int b = 0; b < branches(); ++b) {
      const AttentionOptions options = attention_options(b);
      const std::string refusal =
          backward ? sdpa::run_unmerged(context_, backward_tensors(b), options, workspace_)
                   : sdpa::run_unmerged(context_, forward_tensors(b), options, workspace_);
      if (!refusal.empty()) return false;
    }
    return true;
  }

  /// The last few rows of each head in the last segment, against the definition.
  void check(AttentionBenchResult& result) {
    std::vector<SegmentTask> few;
    {
      SegmentTask task = tasks_[0].back();
      for (size_t h = 0; h < task.queries.count.size(); ++h) {
        const int64_t skip = std::max<int64_t>(0, task.queries.count[h] - 2);
        task.queries.slot[h] += skip * task.queries.step;
        task.queries.first[h] += skip;
        task.queries.count[h] -= skip;
      }
      task.keys[0].key = inputs_.key.host;
      task.keys[0].value = inputs_.value.host;
      task.keys[0].grad_key = host_rows();
      task.keys[0].grad_value = host_rows();
      few.push_back(std::move(task));
    }
    const TensorView expected_out = host_rows(), expected_grad_query = host_rows(),
                     expected_lse = host_arena_.allocate_zeroed(
                         DType::kF32, {options_.batch, options_.heads, options_.tokens});
    fill(host_, expected_lse, -INFINITY);
    reference::attention_forward({expected_out, expected_lse, inputs_.query.host, few},
                                 attention_options(0));
    attention_begin(context_, out_, lse_);
    forward();
    attention_delta(context_, delta_, inputs_.grad_out.device, out_);
    fill(context_, grad_query_, 0.0f);
    backward();
    context_.wait();
    reference::attention_backward({expected_grad_query, inputs_.grad_out.host, download(lse_),
                                   download(delta_), inputs_.query.host, few},
                                  attention_options(0));
    result.forward.largest_error = row_error(download(out_), expected_out, few);
    result.backward.largest_error = row_error(download(grad_query_), expected_grad_query, few);
    const double limit = options_.dtype == DType::kBF16 ? 2e-2 : 2e-5;
    for (double error : {result.forward.largest_error, result.backward.largest_error})
      if (!(error <= limit))
        throw Error("attention benchmark: result differs from the reference by {:.2g}", error);
  }

  Context& context_;
  const AttentionBenchOptions& options_;
  const AttentionBenchInputs& inputs_;
  SequencePlan plan_;
  RotaryTable rotary_;
  Context host_;
  Arena arena_, host_arena_;
  TensorView out_, grad_query_, grad_key_, grad_value_, lse_, delta_;
  std::vector<std::vector<SegmentTask>> tasks_;
  std::vector<std::vector<int64_t>> offsets_;
  void* workspace_ = nullptr;
};

}  // namespace

AttentionBenchInputs::AttentionBenchInputs(Context& context, const AttentionBenchOptions& options)
    : arena_("bench inputs", false, context.device()), host_arena_("bench host inputs") {
  query = draw(context, options, "q");
  key = draw(context, options, "k");
  value = draw(context, options, "v");
  grad_out = draw(context, options, "grad_out");
}

AttentionBenchInputs::Rows AttentionBenchInputs::draw(Context& context,
                                                      const AttentionBenchOptions& o,
                                                      const char* name) {
  const auto allocate = [&](Arena& arena, DType dtype) {
    return arena.allocate(dtype, {o.batch, o.tokens, o.heads, o.head_dim});
  };
  const Rows x{allocate(arena_, o.dtype), allocate(host_arena_, DType::kF32)};
  const int64_t n = x.host.elements(), period = std::min(n, kPeriod);
  Context host = host_context(context);
  fill_normal(host, TensorView(x.host.data, DType::kF32, {period}), 1, name, 1.0);
  float* const numbers = x.host.f32();
  std::vector<bf16> low(o.dtype == DType::kBF16 ? n : 0);
  if (!low.empty())
    for (int64_t i = 0; i < period; ++i) {
      low[i] = to_bf16(numbers[i]);
      numbers[i] = to_float(low[i]);
    }
  for (int64_t i = period; i < n; i += period) {
    const int64_t count = std::min(period, n - i);
    std::copy_n(numbers, count, numbers + i);
    if (!low.empty()) std::copy_n(low.data(), count, low.data() + i);
  }
  const void* from = low.empty() ? x.host.data : low.data();
  if (context.on_gpu())
    device_runtime::copy_to_device(x.device.data, from, x.device.bytes(), context.stream());
  else
    std::memcpy(x.device.data, from, static_cast<size_t>(x.device.bytes()));
  context.wait();
  return x;
}

double attention_bench_limit(Context& context, DType dtype) {
  return context.on_gpu() ? measure_machine(context, 0.3, dtype).matmul_gflops
                          : measure_fma_gflops(context, 0.3);
}

AttentionBenchResult bench_attention(Context& context, const AttentionBenchOptions& options,
                                     const AttentionBenchInputs& inputs) {
  return Bench(context, options, inputs).run();
}

AttentionBenchResult bench_attention(Context& context, const AttentionBenchOptions& options) {
  return bench_attention(context, options, AttentionBenchInputs(context, options));
}

}  // namespace longnet
