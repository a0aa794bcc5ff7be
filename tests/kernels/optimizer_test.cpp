// Optimizer arithmetic: CPU twins against the double reference over several steps; sums of squares.
#include "kernels/optimizer/optimizer.h"

#include <gtest/gtest.h>

#include "support/compare.h"

namespace longnet::test {
namespace {

TensorView flat(std::vector<float>& values) {
  return TensorView(values.data(), DType::kF32, {static_cast<int64_t>(values.size())});
}

class Optimizer : public ::testing::TestWithParam<bool> {};

TEST_P(Optimizer, FollowsTheReference) {
  const bool stable = GetParam();
  Context context({.device = {}, .threads = 2, .counting = false});
  for (int64_t n : {1, 7, 1000, 70000}) {
    std::vector<float> w[2], m[2], v[2];
    for (int twin = 0; twin < 2; ++twin) {
      w[twin] = random_values(n, 1);
      m[twin].assign(n, 0.0f);
      v[twin].assign(n, 0.0f);
    }
    for (int64_t step = 1; step <= 6; ++step) {
      std::vector<float> g = random_values(n, 10 + step, step == 3 ? 50.0f : 0.1f);
      const AdamWOptions options{.learning_rate = 0.01,
                                 .beta1 = 0.9,
                                 .beta2 = 0.98,
                                 .eps = 1e-8,
                                 .weight_decay = 0.1,
                                 .step = step,
                                 .gradient_scale = 0.5};
      if (stable) {
        const double expected =
            reference::stable_adamw_update(flat(w[0]), flat(m[0]), flat(v[0]), flat(g), options);
        const double rms =
            stable_adamw_update(context, flat(w[1]), flat(m[1]), flat(v[1]), flat(g), options);
        EXPECT_NEAR(rms, expected, 1e-5 * expected);
        if (step == 3 && n > 1) {
          EXPECT_GT(rms, 1.5);  // the jump is what clips an update
        }
      } else {
        reference::adamw_update(flat(w[0]), flat(m[0]), flat(v[0]), flat(g), options);
        adamw_update(context, flat(w[1]), flat(m[1]), flat(v[1]), flat(g), options);
      }
    }
    EXPECT_LE(error_ratio(difference(w[1], w[0])), 1.0) << n;
    EXPECT_LE(error_ratio(difference(m[1], m[0])), 1.0) << n;
    EXPECT_LE(error_ratio(difference(v[1], v[0])), 1.0) << n;
  }
}
INSTANTIATE_TEST_SUITE_P(Both, Optimizer, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "stable_adamw" : "adamw"; });

TEST(OptimizerReference, FirstStepByHand) {
  // m-hat = g, v-hat = g^2: the first AdamW step moves by learning_rate against the sign, plus
  // decay.
  std::vector<float> w{2.0f}, m{0}, v{0}, g{-3.0f};
  reference::adamw_update(flat(w), flat(m), flat(v), flat(g),
                          {.learning_rate = 0.1,
                           .beta1 = 0.9,
                           .beta2 = 0.98,
                           .eps = 0,
                           .weight_decay = 0.5,
                           .step = 1,
                           .gradient_scale = 1});
  EXPECT_NEAR(w[0], 2.0 - 0.1 * 0.5 * 2.0 + 0.1, 1e-6);
  EXPECT_NEAR(m[0], -0.3, 1e-6);
  EXPECT_NEAR(v[0], 0.18, 1e-6);
}

TEST(SumOfSquares, ExactOrderAndNonFinite) {
  std::vector<float> values = random_values(123457, 5);
  Context one({.device = {}, .threads = 1, .counting = false});
  Context two({.device = {}, .threads = 2, .counting = false});
  const double expected = reference::sum_of_squares(flat(values));
  EXPECT_EQ(sum_of_squares(one, flat(values)), sum_of_squares(two, flat(values)));
  EXPECT_NEAR(sum_of_squares(two, flat(values)), expected, 1e-12 * expected);
  for (float bad : {NAN, INFINITY}) {
    values[99999] = bad;
    EXPECT_FALSE(std::isfinite(sum_of_squares(two, flat(values))));
  }
}

}  // namespace
}  // namespace longnet::test
