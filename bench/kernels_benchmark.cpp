// Speed of the kernels that memory limits (norm, activation, cross entropy, optimizer) and of the
// linear layers, beside what limits them on this machine: memory_copy and multiply_add, measured in
// the same run. Attention and whole steps: `longnet bench`. Tests check the results, not this.
//
//   build/bench/kernels_benchmark [--benchmark_filter=...] [--benchmark_format=json]
//
// bytes_per_second counts every tensor an operation must read or write once; items_per_second of
// linear layers and multiply_add counts FLOPs. Single shapes: 4096 tokens, C = 512, F = 2048, V =
// 256.
#include <benchmark/benchmark.h>

#include <cstring>

#include "core/arena.h"
#include "kernels/activation/activation.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/fill/fill.h"
#include "kernels/layer_norm/layer_norm.h"
#include "kernels/linear/linear.h"
#include "kernels/machine/machine.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/random/random.h"

namespace longnet {
namespace {

constexpr int64_t kTokens = 4096, kDim = 512, kFfnDim = 2048, kVocabulary = 256;

struct Bench {
  Context context;
  Arena arena{"bench"};

  TensorView tensor(std::initializer_list<int64_t> shape, const char* name) {
    const TensorView view = arena.allocate(DType::kF32, shape);
    fill_normal(context, view, 1, name, 1.0);
    return view;
  }
  TensorView rows(const char* name) { return tensor({kTokens, 1, kDim}, name); }
  TensorView stat() { return arena.allocate_zeroed(DType::kF32, {kTokens, 1}); }
};

void bytes_moved(benchmark::State& state, int64_t floats) {
  state.SetBytesProcessed(state.iterations() * floats * static_cast<int64_t>(sizeof(float)));
}

void memory_copy(benchmark::State& state) {
  Bench b;
  const TensorView from = b.tensor({kTokens, kFfnDim}, "from"),
                   to = b.tensor({kTokens, kFfnDim}, "to");
  const int64_t piece = from.bytes() / kTokens;
  for (auto _ : state) {
#pragma omp parallel for schedule(static) num_threads(b.context.threads())
    for (int64_t row = 0; row < kTokens; ++row)
      std::memcpy(static_cast<char*>(to.data) + row * piece,
                  static_cast<const char*>(from.data) + row * piece, static_cast<size_t>(piece));
    benchmark::ClobberMemory();
  }
  bytes_moved(state, 2 * from.elements());
}
BENCHMARK(memory_copy)->UseRealTime();

void multiply_add(benchmark::State& state) {
  Context context;
  double gflops = 0;
  for (auto _ : state) gflops = std::max(gflops, measure_fma_gflops(context, 0.1));
  state.counters["items_per_second"] = gflops * 1e9;
}
BENCHMARK(multiply_add)->UseRealTime()->Iterations(5);

void layer_norm_forward_residual(benchmark::State& state) {
  Bench b;
  const LayerNormForward args{.out = b.rows("out"),
                              .sum = b.rows("sum"),
                              .mean = b.stat(),
                              .rstd = b.stat(),
                              .x = b.rows("x"),
                              .residual = b.rows("residual"),
                              .weight = b.tensor({kDim}, "weight"),
                              .bias = b.tensor({kDim}, "bias"),
                              .eps = 1e-5f};
  for (auto _ : state) layer_norm_forward(b.context, args);
  bytes_moved(state, 4 * kTokens * kDim);
}
BENCHMARK(layer_norm_forward_residual)->UseRealTime();

void layer_norm_backward(benchmark::State& state) {
  Bench b;
  const LayerNormBackward args{.grad_x = b.rows("grad_x"),
                               .grad_weight = b.tensor({kDim}, "grad_weight"),
                               .grad_bias = b.tensor({kDim}, "grad_bias"),
                               .grad_out = b.rows("grad_out"),
                               .x = b.rows("x"),
                               .mean = b.stat(),
                               .rstd = b.stat(),
                               .weight = b.tensor({kDim}, "weight"),
                               .accumulate = true};
  void* workspace = b.arena.allocate_bytes(layer_norm_backward_workspace_bytes(b.context, kDim));
  for (auto _ : state) longnet::layer_norm_backward(b.context, args, workspace);
  bytes_moved(state, 4 * kTokens * kDim);
}
BENCHMARK(layer_norm_backward)->UseRealTime();

void gelu_sub_norm_forward(benchmark::State& state) {
  Bench b;
  const ActivationForward args{.out = b.tensor({kTokens, kFfnDim}, "out"),
                               .mean = b.arena.allocate_zeroed(DType::kF32, {kTokens}),
                               .rstd = b.arena.allocate_zeroed(DType::kF32, {kTokens}),
                               .hidden = b.tensor({kTokens, kFfnDim}, "hidden"),
                               .gate = {},
                               .weight = b.tensor({kFfnDim}, "weight"),
                               .bias = b.tensor({kFfnDim}, "bias"),
                               .eps = 1e-5f,
                               .activation = Activation::kGelu};
  void* workspace = b.arena.allocate_bytes(activation_workspace_bytes(b.context, kFfnDim));
  for (auto _ : state) activation_forward(b.context, args, workspace);
  bytes_moved(state, 2 * kTokens * kFfnDim);
}
BENCHMARK(gelu_sub_norm_forward)->UseRealTime();

void cross_entropy_gradient(benchmark::State& state) {
  Bench b;
  const TensorView start = b.tensor({kTokens, kVocabulary}, "logits");
  const TensorView logits = b.tensor({kTokens, kVocabulary}, "work");
  const TensorView targets = b.arena.allocate_zeroed(DType::kI64, {kTokens});
  void* sums = b.arena.allocate_bytes(cross_entropy_sums_bytes(b.context, kTokens));
  for (auto _ : state) {
    std::memcpy(logits.data, start.data, static_cast<size_t>(start.bytes()));  // part of the time
    cross_entropy_begin(b.context, sums);
    cross_entropy(b.context, sums, logits, targets, 1.0f, true);
    benchmark::DoNotOptimize(cross_entropy_result(b.context, sums));
  }
  bytes_moved(state, 4 * kTokens * kVocabulary);
}
BENCHMARK(cross_entropy_gradient)->UseRealTime();

void adamw(benchmark::State& state) {
  Bench b;
  const int64_t n = int64_t{8} << 20;
  const TensorView weight = b.tensor({n}, "w"), gradient = b.tensor({n}, "g");
  const TensorView first = b.arena.allocate_zeroed(DType::kF32, {n});
  const TensorView second = b.arena.allocate_zeroed(DType::kF32, {n});
  AdamWOptions options;
  options.learning_rate = 1e-4;
  for (auto _ : state) {
    adamw_update(b.context, weight, first, second, gradient, options);
    ++options.step;
  }
  bytes_moved(state, 7 * n);
}
BENCHMARK(adamw)->UseRealTime();

void linear_layer_forward(benchmark::State& state) {
  Bench b;
  const TensorView x = b.tensor({kTokens, kDim}, "x"), weight = b.tensor({kFfnDim, kDim}, "weight");
  const TensorView bias = b.tensor({kFfnDim}, "bias"), out = b.tensor({kTokens, kFfnDim}, "out");
  for (auto _ : state) linear_forward(b.context, out, x, weight, bias);
  state.SetItemsProcessed(state.iterations() * 2 * kTokens * kDim * kFfnDim);
}
BENCHMARK(linear_layer_forward)->UseRealTime();

}  // namespace
}  // namespace longnet

BENCHMARK_MAIN();
