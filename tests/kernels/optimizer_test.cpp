// Optimizer arithmetic: CPU twins against the double reference over several steps; sums of squares.
#include "kernels/optimizer/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

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

/// Limits of random parts of a whole, cut at cells of the flat buffer; some parts are empty.
std::vector<SumRange> random_parts(const SumRange& whole, int count, std::mt19937_64& random) {
  std::vector<int64_t> cuts{whole.begin, whole.end};
  for (int i = 1; i < count; ++i) {
    const int64_t place = whole.begin + static_cast<int64_t>(random() % (whole.end - whole.begin));
    cuts.push_back(std::max(whole.begin, place / kSumCell * kSumCell));
    if (i == 2) cuts.push_back(cuts.back());
  }
  std::sort(cuts.begin(), cuts.end());
  std::vector<SumRange> parts;
  for (size_t i = 1; i < cuts.size(); ++i) parts.push_back({cuts[i - 1], cuts[i]});
  return parts;
}

TEST(SumTerms, AnyPartsGiveTheBitsOfTheWhole) {
  Context context({.device = {}, .threads = 2, .counting = false});
  std::mt19937_64 random(11);
  for (const int64_t offset : {0, 64, 100, 16384, 16300, 40000})
    for (const int64_t n : {1, 63, 64, 900, 20000, 70001}) {
      const SumRange whole{offset, offset + n};
      std::vector<float> g = random_values(n, 1, 3.0f), v0 = random_values(n, 2), w(n), m(n);
      for (float& value : v0) value = std::abs(value) * 0.1f;
      const AdamWOptions options{.learning_rate = 0.01,
                                 .beta1 = 0.9,
                                 .beta2 = 0.98,
                                 .eps = 1e-8,
                                 .weight_decay = 0.1,
                                 .step = 3,
                                 .gradient_scale = 1,
                                 .offset = offset};
      std::vector<float> v = v0;
      const double rms = stable_adamw_update(context, flat(w), flat(m), flat(v), flat(g), options);
      for (int count : {1, 2, 5}) {
        const std::vector<SumRange> parts = random_parts(whole, count, random);
        std::vector<float> v_parts = v0;
        std::vector<double> ratio, squares;
        for (const SumRange& part : parts) {
          const auto view = [&](std::vector<float>& values) {
            return flat(values).slice(0, part.begin - offset, part.end - part.begin);
          };
          std::vector<double> terms(sum_term_count(whole, part));
          stable_adamw_terms(context, terms, view(v_parts), view(g), options, whole, part);
          ratio.insert(ratio.end(), terms.begin(), terms.end());
          sum_of_squares_terms(context, terms, view(g), whole, part);
          squares.insert(squares.end(), terms.begin(), terms.end());
        }
        EXPECT_EQ(v_parts, v) << offset << " " << n;
        EXPECT_EQ(std::sqrt(add_sum_terms(whole, parts, ratio) / static_cast<double>(n)), rms)
            << offset << " " << n << " in " << count;
        const double sum = add_sum_terms(whole, parts, squares);
        const double expected = reference::sum_of_squares(flat(g));
        EXPECT_NEAR(sum, expected, 1e-12 * expected);
        if (offset == 0) {
          EXPECT_EQ(sum, sum_of_squares(context, flat(g)));
        }
      }
    }
}

TEST(SumTerms, CountsByHandAndRefusals) {
  EXPECT_EQ(sum_term_count({0, 40000}, {0, 40000}), 3);
  EXPECT_EQ(sum_term_count({0, 40000}, {0, 16384}), 1);
  EXPECT_EQ(sum_term_count({0, 40000}, {64, 16384}), 255);
  EXPECT_EQ(sum_term_count({0, 40000}, {16320, 32832}), 1 + 1 + 1);
  EXPECT_EQ(sum_term_count({100, 200}, {100, 192}), 2);  // cells [100, 128), [128, 192)
  EXPECT_EQ(sum_term_count({100, 200}, {192, 200}), 1);
  EXPECT_EQ(sum_term_count({100, 200}, {128, 128}), 0);
  EXPECT_THROW(sum_term_count({0, 200}, {0, 65}), Error);
  EXPECT_THROW(sum_term_count({0, 200}, {64, 256}), Error);
  const std::vector<SumRange> one{{0, 200}};
  EXPECT_THROW(add_sum_terms({0, 200}, one, std::vector<double>(2)), Error);
  EXPECT_THROW(add_sum_terms({0, 200}, one, {}), Error);
}

}  // namespace
}  // namespace longnet::test
