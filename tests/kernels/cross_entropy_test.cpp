// Cross entropy: CPU twin against the double reference, ignored and bad targets, extreme logits.
#include "kernels/cross_entropy/cross_entropy.h"

#include <gtest/gtest.h>

#include "support/compare.h"

namespace longnet::test {
namespace {

/// One chunk alone.
CrossEntropyResult cross_entropy(Context& context, const TensorView& logits,
                                 const TensorView& targets, float scale, bool with_gradient) {
  CrossEntropySums sums;
  cross_entropy_begin(context, &sums);
  longnet::cross_entropy(context, &sums, logits, targets, scale, with_gradient);
  return cross_entropy_result(context, &sums);
}

TEST(CrossEntropy, AgreesWithReference) {
  Context context({.device = {}, .threads = 2, .counting = false});
  for (const auto& [rows, width, spread] :
       {std::array<int64_t, 3>{1, 1, 1}, {3, 7, 1}, {130, 256, 3}, {65, 1000, 30}}) {
    const std::vector<float> start = random_values(rows * width, 1, static_cast<float>(spread));
    std::vector<int64_t> targets(rows);
    for (int64_t t = 0; t < rows; ++t) targets[t] = t % 5 == 4 ? -1 : (t * 37) % width;
    const TensorView target_view(targets.data(), DType::kI64, {rows});
    std::vector<float> logits[2] = {start, start};
    CrossEntropyResult result[2];
    result[0] = reference::cross_entropy(TensorView(logits[0].data(), DType::kF32, {rows, width}),
                                         target_view, 0.25f, true);
    result[1] = cross_entropy(context, TensorView(logits[1].data(), DType::kF32, {rows, width}),
                              target_view, 0.25f, true);
    EXPECT_EQ(result[0].count, result[1].count);
    EXPECT_EQ(result[1].count, rows - rows / 5);
    EXPECT_NEAR(result[1].loss_sum, result[0].loss_sum, 1e-6 * std::abs(result[0].loss_sum) + 1e-6);
    EXPECT_LE(error_ratio(difference(logits[1], logits[0])), 1.0);
    // Without the gradient the logits stay.
    std::vector<float> kept = start;
    const CrossEntropyResult again = cross_entropy(
        context, TensorView(kept.data(), DType::kF32, {rows, width}), target_view, 0.25f, false);
    EXPECT_EQ(again.loss_sum, result[1].loss_sum);
    EXPECT_EQ(kept, start);
  }
}

TEST(CrossEntropy, GradientIsTheDerivative) {
  std::vector<float> logits = random_values(2 * 5, 3), gradient = logits;
  std::vector<int64_t> targets{2, 4};
  const TensorView target_view(targets.data(), DType::kI64, {2});
  reference::cross_entropy(TensorView(gradient.data(), DType::kF32, {2, 5}), target_view, 2.0f,
                           true);
  for (size_t i = 0; i < logits.size(); ++i) {
    const auto loss = [&](float shift) {
      std::vector<float> moved = logits;
      moved[i] += shift;
      return 2.0 * reference::cross_entropy(TensorView(moved.data(), DType::kF32, {2, 5}),
                                            target_view, 1.0f, false)
                       .loss_sum;
    };
    EXPECT_NEAR((loss(1e-2f) - loss(-1e-2f)) / 2e-2, gradient[i], 1e-4);
  }
}

TEST(CrossEntropy, ExtremeAndBrokenLogits) {
  Context context;
  std::vector<int64_t> targets{1};
  const TensorView target_view(targets.data(), DType::kI64, {1});
  std::vector<float> far{1e4f, -1e4f, 0.0f};
  const TensorView far_view(far.data(), DType::kF32, {1, 3});
  EXPECT_NEAR(cross_entropy(context, far_view, target_view, 1, true).loss_sum, 2e4, 1e-2);
  EXPECT_NEAR(far[0], 1.0f, 1e-6);
  EXPECT_NEAR(far[1], -1.0f, 1e-6);
  std::vector<float> broken{0.0f, 1.0f, NAN};
  EXPECT_TRUE(std::isnan(
      cross_entropy(context, TensorView(broken.data(), DType::kF32, {1, 3}), target_view, 1, true)
          .loss_sum));
  for (int64_t bad : {int64_t{-2}, int64_t{3}}) {
    targets[0] = bad;
    try {
      cross_entropy(context, far_view, target_view, 1, true);
      FAIL();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(fmt::format("target {} in row 0", bad)),
                std::string::npos)
          << error.what();
    }
  }
}

TEST(CrossEntropy, RowsLieWithoutGaps) {
  Context context;
  std::vector<float> logits = random_values(2 * 8, 1);
  std::vector<int64_t> targets{1, 2};
  const TensorView wide(logits.data(), DType::kF32, {2, 8}), t(targets.data(), DType::kI64, {2});
  EXPECT_THROW(cross_entropy(context, wide.slice(1, 0, 7), t, 1, true), Error);
}

TEST(CrossEntropy, ChunksAddUpAndTheFirstBadTargetIsNamed) {
  Context context;
  std::vector<float> logits = random_values(6 * 5, 3);
  std::vector<int64_t> targets{1, -1, 4, 0, 7, -3};
  const TensorView all(logits.data(), DType::kF32, {6, 5}), t(targets.data(), DType::kI64, {6});
  CrossEntropySums sums;
  cross_entropy_begin(context, &sums);
  longnet::cross_entropy(context, &sums, all.slice(0, 0, 2), t.slice(0, 0, 2), 1, false);
  longnet::cross_entropy(context, &sums, all.slice(0, 2, 2), t.slice(0, 2, 2), 1, false);
  const CrossEntropyResult four = cross_entropy_result(context, &sums);
  EXPECT_EQ(four.count, 3);
  const double expected =
      reference::cross_entropy(all.slice(0, 0, 4), t.slice(0, 0, 4), 1, false).loss_sum;
  EXPECT_NEAR(four.loss_sum, expected, 1e-5);
  longnet::cross_entropy(context, &sums, all.slice(0, 4, 2), t.slice(0, 4, 2), 1, true);
  for (int i = 20; i < 30; ++i) EXPECT_EQ(logits[i], 0.0f);
  try {
    cross_entropy_result(context, &sums);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("target 7 in row 4"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace longnet::test
