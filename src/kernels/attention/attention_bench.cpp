// See attention_bench.h. The limit is measured before and after, and the larger one counts.
#include "kernels/attention/attention_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>

#include "core/arena.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/segment_tasks.h"
#include "kernels/fill/fill.h"
#include "kernels/machine/machine.h"
#include "kernels/random/random.h"

namespace longnet {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// prepare: called before every call, its time is not counted.
AttentionBenchTiming time_calls(Context& context, int repetitions,
                                const std::function<void()>& prepare,
                                const std::function<void()>& call) {
  AttentionBenchTiming timing;
  const double before = context.work().attention_flops;
  prepare();
  call();
  timing.flops = context.work().attention_flops - before;
  std::vector<double> seconds;
  for (int i = 0; i < repetitions; ++i) {
    prepare();
    const double start = now();
    call();
    seconds.push_back(now() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  timing.median_seconds = seconds[seconds.size() / 2];
  timing.fastest_seconds = seconds.front();
  timing.slowest_seconds = seconds.back();
  timing.gflops = timing.flops / timing.median_seconds / 1e9;
  return timing;
}

/// Largest difference over the kept rows of the given tasks, relative to the largest expected
/// value.
double row_error(const TensorView& actual, const TensorView& expected,
                 const std::vector<SegmentTask>& tasks) {
  double error = 0, largest = 1e-30;
  for (const SegmentTask& task : tasks)
    for (size_t h = 0; h < task.queries.count.size(); ++h)
      for (int64_t i = 0; i < task.queries.count[h]; ++i) {
        const int64_t at = (task.queries.slot[h] + i * task.queries.step) * actual.stride[1] +
                           static_cast<int64_t>(h) * actual.stride[2];
        for (int64_t d = 0; d < actual.shape[3]; ++d) {
          error = std::max(error, std::abs(double(actual.f32()[at + d]) - expected.f32()[at + d]));
          largest = std::max(largest, std::abs(double(expected.f32()[at + d])));
        }
      }
  return std::isnan(error) ? INFINITY : error / largest;
}

}  // namespace

AttentionBenchResult bench_attention(Context& context, const AttentionBenchOptions& options) {
  const SequencePlan plan(options.tokens, 1, 0, options.heads, options.branches,
                          HeadOffset::kInterleaved);
  Arena arena("bench");
  const auto tensor = [&](const char* name) {
    const TensorView view = arena.allocate_zeroed(
        DType::kF32, {options.batch, options.tokens, options.heads, options.head_dim});
    if (name != nullptr) fill_normal(context, view, 1, name, 1.0);
    return view;
  };
  const TensorView q = tensor("q"), k = tensor("k"), v = tensor("v"), grad_out = tensor("grad_out");
  const TensorView out = tensor(nullptr), grad_q = tensor(nullptr), grad_k = tensor(nullptr),
                   grad_v = tensor(nullptr);
  const TensorView lse =
      arena.allocate_zeroed(DType::kF32, {options.batch, options.heads, options.tokens});
  const TensorView delta =
      arena.allocate_zeroed(DType::kF32, {options.batch, options.heads, options.tokens});
  std::vector<std::vector<SegmentTask>> tasks;
  std::vector<std::vector<int64_t>> offsets;
  int64_t workspace_bytes = 0;
  for (size_t b = 0; b < options.branches.size(); ++b) {
    tasks.push_back(local_segment_tasks(plan, static_cast<int>(b), k, v, grad_k, grad_v));
    offsets.push_back(plan.head_offsets(static_cast<int>(b)));
    workspace_bytes =
        std::max(workspace_bytes,
                 attention_workspace_bytes(context, {options.batch, options.head_dim, DType::kF32},
                                           tasks.back(), true));
  }
  void* workspace = arena.allocate_bytes(workspace_bytes);
  const auto attention_options = [&](size_t b) {
    AttentionOptions o;
    o.dilation = options.branches[b].dilation;
    o.head_offset = offsets[b];
    o.scale = static_cast<float>(1.0 / std::sqrt(double(options.head_dim)));
    o.causal = options.causal;
    return o;
  };

  AttentionBenchResult result;
  result.fma_gflops = measure_fma_gflops(context, 0.3);
  std::vector<double> begin_seconds;
  result.forward = time_calls(
      context, options.repetitions,
      [&] {
        const double start = now();
        attention_begin(context, out, lse);
        begin_seconds.push_back(now() - start);
      },
      [&] {
        for (size_t b = 0; b < tasks.size(); ++b)
          attention_forward(context, {out, lse, q, tasks[b]}, attention_options(b), workspace);
      });
  std::sort(begin_seconds.begin(), begin_seconds.end());
  result.begin_seconds = begin_seconds[begin_seconds.size() / 2];
  attention_delta(context, delta, grad_out, out);
  result.backward = time_calls(
      context, options.repetitions, [] {},
      [&] {
        for (size_t b = 0; b < tasks.size(); ++b)
          attention_backward(context, {grad_q, grad_out, lse, delta, q, tasks[b]},
                             attention_options(b), workspace);
      });
  result.fma_gflops = std::max(result.fma_gflops, measure_fma_gflops(context, 0.3));
  result.forward.share_of_fma = result.forward.gflops / result.fma_gflops;
  result.backward.share_of_fma = result.backward.gflops / result.fma_gflops;

  // The last few rows of each head in each branch's last segment, against the definition.
  const TensorView expected_out = tensor(nullptr),
                   expected_lse = arena.allocate_zeroed(
                       DType::kF32, {options.batch, options.heads, options.tokens});
  const TensorView unused_k = tensor(nullptr), unused_v = tensor(nullptr),
                   expected_grad_q = tensor(nullptr);
  std::vector<std::vector<SegmentTask>> few;
  for (size_t b = 0; b < tasks.size(); ++b) {
    SegmentTask task = tasks[b].back();
    for (size_t h = 0; h < task.queries.count.size(); ++h) {
      const int64_t skip = std::max<int64_t>(0, task.queries.count[h] - 2);
      task.queries.slot[h] += skip * task.queries.step;
      task.queries.first[h] += skip;
      task.queries.count[h] -= skip;
    }
    task.keys[0].grad_key = unused_k;
    task.keys[0].grad_value = unused_v;
    few.push_back({std::move(task)});
  }
  if (options.branches.size() != 1)
    return result;  // merged rows differ by branch: tests cover them
  fill(context, expected_lse, -INFINITY);
  reference::attention_forward({expected_out, expected_lse, q, few[0]}, attention_options(0));
  fill(context, grad_q, 0.0f);
  attention_backward(context, {grad_q, grad_out, lse, delta, q, tasks[0]}, attention_options(0),
                     workspace);
  reference::attention_backward({expected_grad_q, grad_out, lse, delta, q, few[0]},
                                attention_options(0));
  result.forward.largest_error = row_error(out, expected_out, few[0]);
  result.backward.largest_error = row_error(grad_q, expected_grad_q, few[0]);
  for (double error : {result.forward.largest_error, result.backward.largest_error})
    if (!(error <= 2e-5))
      throw Error("attention benchmark: result differs from the reference by {:.2g}", error);
  return result;
}

}  // namespace longnet
