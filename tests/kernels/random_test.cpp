// Philox known answers (Random123's kat_vectors), moments, and independence of threads and order.
#include "kernels/random/random.h"

#include <gtest/gtest.h>

#include "kernels/machine/machine.h"
#include "support/compare.h"

namespace longnet::test {
namespace {

TEST(Philox, KnownAnswers) {
  using Four = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Four{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Four{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Four{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RandomFill, MomentsAndKeys) {
  const int64_t n = 200000;
  std::vector<float> normal(n), uniform(n), other(n), one_thread(n);
  const auto view = [](std::vector<float>& v) {
    return TensorView(v.data(), DType::kF32, {static_cast<int64_t>(v.size())});
  };
  Context two({.device = {}, .threads = 2, .counting = false});
  fill_normal(two, view(normal), 1, "a", 2.0);
  fill_uniform(two, view(uniform), 1, "a", 0.5);
  fill_normal(two, view(other), 1, "b", 2.0);
  Context one({.device = {}, .threads = 1, .counting = false});
  fill_normal(one, view(one_thread), 1, "a", 2.0);
  EXPECT_EQ(normal, one_thread);
  double mean = 0, square = 0, fourth = 0, correlation = 0, uniform_square = 0;
  for (int64_t i = 0; i < n; ++i) {
    mean += normal[i] / n;
    square += double(normal[i]) * normal[i] / n;
    fourth += std::pow(normal[i] / 2.0, 4) / n;
    correlation += double(normal[i]) * other[i] / n;
    uniform_square += double(uniform[i]) * uniform[i] / n;
    ASSERT_LE(std::abs(uniform[i]), 0.5f);
  }
  EXPECT_NEAR(mean, 0, 0.02);
  EXPECT_NEAR(square, 4, 0.06);
  EXPECT_NEAR(fourth, 3, 0.1);
  EXPECT_NEAR(correlation, 0, 0.04);
  EXPECT_NEAR(uniform_square, 0.25 / 3, 0.001);
}

TEST(Machine, LimitsArePositiveAndLeaveNoTrace) {
  Context context;
  // oneDNN picks its own instruction set, so the two limits compare with the machine's best one
  // only, and without instrumentation. Other work on the machine may spoil one measurement.
#if defined(__SANITIZE_ADDRESS__)
  const bool comparable = false;
#else
  const bool comparable = context.isa() == Isa::kAvx512;
#endif
  MachinePeak peak = measure_machine(context, 0.05);
  for (int i = 0; i < 5 && comparable && peak.matmul_gflops > 1.3 * peak.fma_gflops_f32; ++i)
    peak = measure_machine(context, 0.2);
  EXPECT_GT(peak.fma_gflops_f32, 0.1);
  EXPECT_GT(peak.matmul_gflops, 0.1);
  if (comparable) {
    EXPECT_LE(peak.matmul_gflops, 1.3 * peak.fma_gflops_f32);
  }
  EXPECT_EQ(context.work().matmul_flops, 0);
}

TEST(Machine, StepAboveThePeakRaisesIt) {
  PeakRate peak(100);
  EXPECT_EQ(peak.share(40), 0.4);
  EXPECT_EQ(peak.gflops(), 100);
  EXPECT_EQ(peak.share(125), 1) << "no share is above one";
  EXPECT_EQ(peak.gflops(), 125);
  EXPECT_EQ(peak.share(50), 0.4);
  EXPECT_EQ(PeakRate().share(0), 0);
}

}  // namespace
}  // namespace longnet::test
