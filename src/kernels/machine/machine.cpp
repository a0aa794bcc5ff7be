// See machine.h.
#include "kernels/machine/machine.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/linear/linear.h"

namespace longnet {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
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
  std::vector<double> rates;
  int64_t rounds = 200'000;
  const double end = now() + seconds;
  while (now() < end || rates.size() < 5) {
    double flops = 0;
    const double start = now();
#pragma omp parallel num_threads(context.threads()) reduction(+ : flops)
    {
      float sink = static_cast<float>(omp_get_thread_num());
      flops += rounds_of(rounds, &sink);
    }
    rates.push_back(flops / (now() - start) / 1e9);
  }
  return median(rates);
}

MachinePeak measure_machine(Context& context, double seconds) {
  MachinePeak peak;
  if (context.counting()) return peak;
  peak.fma_gflops_f32 = measure_fma_gflops(context, seconds / 3);
  constexpr int64_t kSize = 1024;
  std::vector<float> a(kSize * kSize, 0.5f), b(kSize * kSize, 0.25f), c(kSize * kSize);
  const auto matrix = [&](std::vector<float>& values) {
    return TensorView(values.data(), DType::kF32, {kSize, kSize});
  };
  const Work before = context.work();
  linear_forward(context, matrix(c), matrix(a), matrix(b), {});  // warm-up: creates the primitive
  std::vector<double> rates;
  const double end = now() + seconds * 2 / 3;
  while (now() < end || rates.size() < 5) {
    const double start = now();
    linear_forward(context, matrix(c), matrix(a), matrix(b), {});
    rates.push_back(2.0 * kSize * kSize * kSize / (now() - start) / 1e9);
  }
  context.work() = before;  // measuring is no work of the model
  peak.matmul_gflops_f32 = median(rates);
  return peak;
}

}  // namespace longnet
