// See machine.h.
#include "kernels/machine/machine.h"

#include <omp.h>

#include <algorithm>
#include <vector>

#include "core/arena.h"
#include "core/bf16.h"
#include "core/clock.h"
#include "kernels/cast/cast.h"
#include "kernels/linear/linear.h"
#include "kernels/random/random.h"

namespace longnet {
namespace {

/// The GPU's matrix products, launched back to back so that the host's part is hidden.
double gpu_matmul_gflops(Context& context, double seconds, DType dtype) {
  int64_t size = dtype == DType::kBF16 ? 8192 : 4096;
  // Half of what is free, so that a nearly full GPU only measures a little less.
  const int64_t room = device_runtime::memory_info().free / 2 - linear_workspace_bytes(context);
  while (size > 256 && size * size * (3 * dtype_size(dtype) + 4) > room) size /= 2;
  Arena arena("machine", false, context.device());
  const TensorView numbers = arena.allocate(DType::kF32, {size, size});
  const auto operand = [&](const char* name) {
    const TensorView x = arena.allocate(dtype, {size, size});
    fill_normal(context, dtype == DType::kF32 ? x : numbers, 1, name, 1.0);
    if (dtype != DType::kF32) cast(context, x, numbers);
    return x;
  };
  const TensorView a = operand("a"), b = operand("b"), out = arena.allocate(dtype, {size, size});
  const bool borrowed = context.library_workspace() == nullptr;
  const int64_t scratch = linear_workspace_bytes(context);
  if (borrowed) context.set_library_workspace(arena.allocate_bytes(scratch), scratch);
  const auto run = [&](int calls) {
    const double start = seconds_now();
    for (int i = 0; i < calls; ++i) linear_forward(context, out, a, b, {});
    context.wait();
    return (seconds_now() - start) / calls;
  };
  run(3);  // warm-up: chooses the algorithm
  constexpr int kCalls = 10;
  const double flops =
      2.0 * static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(size);
  double best = 0;
  const double end = seconds_now() + seconds;
  for (int repetition = 0; repetition < 3 || seconds_now() < end; ++repetition)
    best = std::max(best, flops / run(kCalls) / 1e9);
  if (borrowed) context.set_library_workspace(nullptr, 0);
  return best;
}

/// Products of two sizes in turn. The large one comes nearer to the limit on many cores; the small
/// one takes a millisecond or two, and so is sometimes left alone by other programs.
double cpu_matmul_gflops(Context& context, double seconds, DType dtype) {
  constexpr int64_t kLargest = 1024;
  // Zero bytes would do for any type; these are powers of two, exact in both.
  std::vector<float> high_a(kLargest * kLargest, 0.5f), high_b(kLargest * kLargest, 0.25f);
  std::vector<bf16> low_a(kLargest * kLargest, to_bf16(0.5f));
  std::vector<bf16> low_b(kLargest * kLargest, to_bf16(0.25f));
  std::vector<float> c(kLargest * kLargest);
  const auto rate = [&](int64_t size) {
    const auto operand = [&](std::vector<float>& high, std::vector<bf16>& low) {
      void* data = dtype == DType::kBF16 ? static_cast<void*>(low.data()) : high.data();
      return TensorView(data, dtype, {size, size});
    };
    const TensorView a = operand(high_a, low_a), b = operand(high_b, low_b);
    const double start = seconds_now();
    linear_forward(context, TensorView(c.data(), DType::kF32, {size, size}), a, b, {});
    return 2.0 * static_cast<double>(size * size * size) / (seconds_now() - start) / 1e9;
  };
  rate(kLargest / 2), rate(kLargest);  // warm-up: creates the primitives
  double best = 0;
  const double end = seconds_now() + seconds;
  for (int repetition = 0; repetition < 5 || seconds_now() < end; ++repetition) {
    for (int small = 0; small < 8; ++small) best = std::max(best, rate(kLargest / 2));
    best = std::max(best, rate(kLargest));
  }
  return best;
}

}  // namespace

double measure_fma_gflops(Context& context, double seconds) {
  if (context.counting()) return 0;
  const auto rounds_of = [&](int64_t rounds, float* sink) {
    switch (context.isa()) {
#if defined(__x86_64__)
      case Isa::kAvx512:
        return internal::fma_rounds_avx512(rounds, sink);
      case Isa::kAvx2:
        return internal::fma_rounds_avx2(rounds, sink);
#endif
      default:
        return internal::fma_rounds_generic(rounds, sink);
    }
  };
  constexpr int64_t kRounds = 50'000;  // about 0.2 ms: mostly undisturbed by other programs
  double best = 0;
  const double end = seconds_now() + seconds;
  for (int repetition = 0; repetition < 5 || seconds_now() < end; ++repetition) {
    // Every thread's own rate: one that starts late or is interrupted does not slow the others'
    // figure.
    double rate = 0;
#pragma omp parallel num_threads(context.threads()) reduction(+ : rate)
    {
      float sink = static_cast<float>(omp_get_thread_num());
      const double start = seconds_now();
      const double flops = rounds_of(kRounds, &sink);
      rate += flops / (seconds_now() - start) / 1e9;
    }
    best = std::max(best, rate);
  }
  return best;
}

MachinePeak measure_machine(Context& context, double seconds, DType dtype) {
  MachinePeak peak;
  if (context.counting()) return peak;
  if (context.device().type == DeviceType::kCUDA) {
    const Work before = context.work();
    peak.matmul_gflops = gpu_matmul_gflops(context, seconds, dtype);
    context.work() = before;
    return peak;
  }
  peak.fma_gflops_f32 = measure_fma_gflops(context, seconds / 3);
  const Work before = context.work();
  peak.matmul_gflops = cpu_matmul_gflops(context, seconds * 2 / 3, dtype);
  context.work() = before;  // measuring is no work of the model
  return peak;
}

}  // namespace longnet
