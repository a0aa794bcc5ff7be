// CUDA cross entropy against the double reference: narrow and wide rows, with room between them,
// chunks, ignored and bad targets, extreme and broken logits.
#include "kernels/cross_entropy/cross_entropy.h"
#include "simt/device_values.h"
#include "simt/support.h"
#include "support/compare.h"

namespace longnet::simt_test {
namespace {

using test::difference;
using test::error_ratio;
using test::random_values;

struct Loss {
  CrossEntropyResult result;
  std::vector<float> logits;
};

/// The whole in chunks of `chunk` rows, which lie `gap` further apart than their width. What is
/// between them must stay: it is no logit, and larger than all of them.
Loss device_loss(const std::vector<float>& start, const std::vector<int64_t>& targets, float scale,
                 bool with_gradient, int64_t chunk, int64_t gap = 0) {
  constexpr float kBetween = 1e30f;
  Context context = gpu_context();
  const int64_t rows = static_cast<int64_t>(targets.size());
  const int64_t width = static_cast<int64_t>(start.size()) / rows, stride = width + gap;
  std::vector<float> apart(rows * stride - gap, kBetween);  // nothing behind the last row
  for (int64_t t = 0; t < rows; ++t) std::copy_n(&start[t * width], width, &apart[t * stride]);
  const DeviceValues logits(DType::kF32, apart), d_targets(targets);
  TensorView view = logits.view({rows, width});
  view.stride[0] = stride;
  const DeviceValues sums(DType::kI64, (cross_entropy_sums_bytes(context, chunk) + 7) / 8);
  cross_entropy_begin(context, sums.data());
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    cross_entropy(context, sums.data(), view.slice(0, begin, count),
                  d_targets.flat().slice(0, begin, count), scale, with_gradient);
  }
  Loss loss{cross_entropy_result(context, sums.data()), std::vector<float>(rows * width)};
  apart = logits.floats();
  for (int64_t t = 0; t < rows; ++t) {
    std::copy_n(&apart[t * stride], width, &loss.logits[t * width]);
    for (int64_t i = t * stride + width; i < (t + 1) * stride && t + 1 < rows; ++i)
      EXPECT_EQ(apart[i], kBetween) << "behind row " << t;
  }
  return loss;
}

TEST(CrossEntropySimt, AgreesWithReference) {
  int index = 0;
  for (const auto& [rows, width, spread, chunk, gap] : {std::array<int64_t, 5>{1, 1, 1, 1, 0},
                                                        {3, 7, 1, 2, 0},
                                                        {3, 7, 1, 2, 1},
                                                        {4, 2, 1, 4, 6},
                                                        {130, 256, 3, 100, 0},
                                                        {65, 1000, 30, 65, 0},
                                                        {20, 1003, 3, 9, 21},
                                                        {5, 4100, 3, 3, 0},
                                                        {4, 2049, 10, 4, 0},
                                                        {4, 2049, 10, 3, 63},
                                                        {3, 2050, 3, 3, 1},
                                                        {5, 4103, 3, 5, 57}}) {
    const std::vector<float> start = random_values(rows * width, 1, static_cast<float>(spread));
    std::vector<int64_t> targets(rows);
    for (int64_t t = 0; t < rows; ++t) targets[t] = t % 5 == 4 ? -1 : (t * 37) % width;
    std::vector<float> want = start;
    const CrossEntropyResult expected =
        reference::cross_entropy(TensorView(want.data(), DType::kF32, {rows, width}),
                                 TensorView(targets.data(), DType::kI64, {rows}), 0.25f, true);
    ++index;
    simt::set_order(kOrders[index % 4], uint64_t(index));
    const Loss got = device_loss(start, targets, 0.25f, true, chunk, gap);
    EXPECT_EQ(got.result.count, expected.count);
    EXPECT_NEAR(got.result.loss_sum, expected.loss_sum, 1e-6 * std::abs(expected.loss_sum) + 1e-6);
    EXPECT_LE(error_ratio(difference(got.logits, want)), 1)
        << rows << " x " << width << " + " << gap;
    const Loss again = device_loss(start, targets, 0.25f, false, chunk, gap);
    EXPECT_EQ(again.result.loss_sum, got.result.loss_sum);
    EXPECT_EQ(again.logits, start);
  }
  simt::set_order(simt::Order::kAscending, 1);
}

TEST(CrossEntropySimt, RowsInOneAnotherAndStridedColumnsAreRefused) {
  Context context = gpu_context();
  const DeviceValues logits(DType::kF32, 64), targets(std::vector<int64_t>{0, 1});
  const DeviceValues sums(DType::kI64, (cross_entropy_sums_bytes(context, 2) + 7) / 8);
  TensorView view = logits.view({2, 8});
  view.stride[0] = 7;
  EXPECT_THROW(cross_entropy(context, sums.data(), view, targets.flat(), 1, false), Error);
  view.stride = {16, 2, 0, 0};
  EXPECT_THROW(cross_entropy(context, sums.data(), view, targets.flat(), 1, false), Error);
}

TEST(CrossEntropySimt, ExtremeBrokenAndBad) {
  const Loss far = device_loss({1e4f, -1e4f, 0.0f}, {1}, 1, true, 1);
  EXPECT_NEAR(far.result.loss_sum, 2e4, 1e-2);
  EXPECT_NEAR(far.logits[0], 1.0f, 1e-6);
  EXPECT_NEAR(far.logits[1], -1.0f, 1e-6);
  EXPECT_TRUE(std::isnan(device_loss({0, 1, NAN}, {1}, 1, true, 1).result.loss_sum));
  for (int64_t broken = 0; broken < 7; ++broken) {  // in packs and behind them
    std::vector<float> logits(7, 0.5f);
    logits[broken] = NAN;
    EXPECT_TRUE(std::isnan(device_loss(logits, {1}, 1, true, 1).result.loss_sum)) << broken;
  }
  // Entries of -inf have probability 0, wherever they stand.
  std::vector<float> masked(200, -INFINITY);
  masked[150] = 1.0f, masked[151] = 1.0f;
  EXPECT_NEAR(device_loss(masked, {150}, 1, true, 1).result.loss_sum, std::log(2.0), 1e-6);
  for (const int64_t bad : {int64_t{-2}, int64_t{3}}) {
    try {
      device_loss(random_values(5 * 3, 1), {0, 1, 2, bad, 9}, 1, true, 2);
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(fmt::format("target {} in row 3", bad)),
                std::string::npos)
          << error.what();
    }
  }
}

TEST(CrossEntropySimt, MissingBarrierIsFound) {
  if (!simt::race_checked()) GTEST_SKIP() << "only in the race build";
  const std::string found = found_with_defect(68, [] {
    device_loss(random_values(2 * 2001, 1), {1, 2}, 1, true, 2, 47);
  });
  EXPECT_NE(found.find("cross_entropy_cuda.cu:"), std::string::npos) << found;
}

}  // namespace
}  // namespace longnet::simt_test
