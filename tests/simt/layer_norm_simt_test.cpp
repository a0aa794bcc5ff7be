// CUDA LayerNorm and fill under the emulator against the double reference, f32 and bf16.
#include <cstring>

#include "kernels/fill/fill_cuda.h"
#include "kernels/layer_norm/layer_norm_cuda.h"
#include "simt/support.h"
#include "support/compare.h"

namespace longnet::simt_test {
namespace {

using test::difference;
using test::error_ratio;
using test::random_values;

struct Case {
  int64_t rows, groups, width;
  bool residual, strided, accumulate, in_place;
};

/// Values as f32 or bf16 memory, in exactly as many bytes.
struct Buffer {
  bool half;
  std::vector<float> wide;
  std::vector<uint16_t> narrow;
  Buffer(const std::vector<float>& values, bool half_) : half(half_) {
    if (!half) wide = values;
    for (float x : half ? values : std::vector<float>{}) {
      uint32_t bits;
      std::memcpy(&bits, &x, 4);
      narrow.push_back(static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16));
    }
  }
  std::vector<float> values() const {
    if (!half) return wide;
    std::vector<float> v;
    for (uint16_t b : narrow) {
      const uint32_t bits = uint32_t{b} << 16;
      v.emplace_back();
      std::memcpy(&v.back(), &bits, 4);
    }
    return v;
  }
  TensorView view(const Case& c, int64_t gap) {
    TensorView v(half ? static_cast<void*>(narrow.data()) : wide.data(),
                 half ? DType::kBF16 : DType::kF32, {c.rows, c.groups, c.width});
    v.stride = {c.groups * c.width + gap, c.width, 1, 0};
    return v;
  }
};
TensorView flat(std::vector<float>& values) {
  return TensorView(values.data(), DType::kF32, {static_cast<int64_t>(values.size())});
}

void check(const Case& c, bool half) {
  const int64_t gap = c.strided ? 5 : 0;
  const int64_t size = c.rows * (c.groups * c.width + gap) - gap, stats = c.rows * c.groups;
  Context context;
  std::vector<float> start = random_values(size, 1);
  for (float& v : start) v += half ? 2.0f : 30.0f;  // a mean far from zero
  // Both twins start from what the type holds.
  Buffer x[2] = {{Buffer(start, half).values(), false}, {start, half}};
  Buffer residual[2] = {{Buffer(random_values(size, 2), half).values(), false},
                        {random_values(size, 2), half}};
  std::vector<float> weight = random_values(c.width, 3), bias = random_values(c.width, 4);
  const std::vector<float> sevens(size, 7.0f);
  Buffer out[2] = {{sevens, false}, {sevens, half}}, sum[2] = {{sevens, false}, {sevens, half}};
  std::vector<float> mean[2], rstd[2];
  for (int twin = 0; twin < 2; ++twin) {
    mean[twin].assign(stats, 0);
    rstd[twin].assign(stats, 0);
    const LayerNormForward args{.out = out[twin].view(c, gap),
                                .sum = c.residual ? sum[twin].view(c, gap) : TensorView{},
                                .mean = flat(mean[twin]),
                                .rstd = flat(rstd[twin]),
                                .x = x[twin].view(c, gap),
                                .residual = c.residual ? residual[twin].view(c, gap) : TensorView{},
                                .weight = flat(weight),
                                .bias = flat(bias),
                                .eps = 1e-5f};
    twin ? cuda::layer_norm_forward(context, args) : reference::layer_norm_forward(args);
  }
  // bf16: half an ulp (2^-9) of the stored sum, which the norm then amplifies, and of the output.
  const double tolerance = half ? 2e-2 : c.width == 1 ? 1e-4 : 2e-5;
  EXPECT_LE(error_ratio(difference(out[1].values(), out[0].values()), 0, tolerance), 1);
  if (c.residual) {
    EXPECT_LE(error_ratio(difference(sum[1].values(), sum[0].values()), 0, half ? 4e-3 : 1e-12), 1);
  }
  EXPECT_LE(error_ratio(difference(mean[1], mean[0]), 0, half ? 4e-3 : 1e-6), 1);
  EXPECT_LE(error_ratio(difference(rstd[1], rstd[0]), 0, half ? 1e-2 : 2e-5), 1);

  Buffer input[2] = {{(c.residual ? sum[1] : x[1]).values(), false}, c.residual ? sum[1] : x[1]};
  Buffer grad_out[2] = {{Buffer(random_values(size, 5), half).values(), false},
                        {random_values(size, 5), half}};
  std::vector<float> grad_weight[2], grad_bias[2];
  Buffer grad_x[2] = {{Buffer(random_values(size, 6), half).values(), false},
                      {random_values(size, 6), half}};
  std::vector<float> workspace(
      cuda::layer_norm_backward_workspace_bytes(context, c.width) / sizeof(float), NAN);
  for (int twin = 0; twin < 2; ++twin) {
    grad_weight[twin] = random_values(c.width, 7);
    grad_bias[twin] = random_values(c.width, 8);
    if (twin == 1 && c.in_place) grad_x[1] = grad_out[1];
    const LayerNormBackward args{
        .grad_x = grad_x[twin].view(c, gap),
        .grad_weight = flat(grad_weight[twin]),
        .grad_bias = flat(grad_bias[twin]),
        .grad_out = twin == 1 && c.in_place ? grad_x[1].view(c, gap) : grad_out[twin].view(c, gap),
        .x = input[twin].view(c, gap),
        .mean = flat(mean[1]),
        .rstd = flat(rstd[1]),
        .weight = flat(weight),
        .accumulate = c.accumulate};
    twin ? cuda::layer_norm_backward(context, args, workspace.data())
         : reference::layer_norm_backward(args);
  }
  std::vector<float> got = grad_x[1].values(), want = grad_x[0].values();
  if (c.strided)  // what lies between the rows differs when in place
    for (int64_t i = 0; i < size; ++i)
      if (i % (c.groups * c.width + gap) >= c.groups * c.width) got[i] = want[i];
  EXPECT_LE(error_ratio(difference(got, want), 0, half ? 8e-3 : 2e-5), 1);
  EXPECT_LE(error_ratio(difference(grad_weight[1], grad_weight[0]), 0, 2e-5), 1);
  EXPECT_LE(error_ratio(difference(grad_bias[1], grad_bias[0]), 0, 2e-5), 1);
}

const Case kCases[] = {
    {1, 1, 7, false, false, false, false},   {5, 1, 33, true, false, true, false},
    {64, 1, 192, true, false, false, false}, {40, 1, 768, false, false, true, false},
    {37, 4, 16, false, true, false, true},   {301, 6, 32, false, true, false, true},
    {3, 1, 8, true, true, true, false}};

TEST(LayerNormSimt, AgreesWithReference) {
  int index = 0;
  for (const Case& c : kCases)
    for (bool half : {false, true}) {
      SCOPED_TRACE(
          fmt::format("{} x {} x {} {}", c.rows, c.groups, c.width, half ? "bf16" : "f32"));
      ++index;
      simt::set_order(kOrders[index % 4], uint64_t(index));
      check(c, half);
    }
  simt::set_order(simt::Order::kAscending, 1);
}

TEST(LayerNormSimt, BlocksAddingToOnePlaceAreFound) {
  if (!simt::race_checked()) GTEST_SKIP() << "only in the race build";
  const std::string found = found_with_defect(30, [] {
    check({128, 1, 40, false, false, false, false}, false);
  });
  EXPECT_NE(found.find("race: write after write at layer_norm_cuda.cu:"), std::string::npos)
      << found;
}

TEST(FillSimt, StridedRows) {
  Context context;
  std::vector<float> values(3 * 10 - 3, 1.0f);
  TensorView view(values.data(), DType::kF32, {3, 7});
  view.stride = {10, 1, 0, 0};
  cuda::fill(context, view, 2.5f);
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], i % 10 < 7 ? 2.5f : 1.0f) << i;
  std::vector<uint16_t> half(5, 0);
  cuda::fill(context, TensorView(half.data(), DType::kBF16, {5}), 1.00390625f);  // a tie: to even
  for (uint16_t bits : half) EXPECT_EQ(bits, 0x3f80);
}

}  // namespace
}  // namespace longnet::simt_test
