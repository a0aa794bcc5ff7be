// LayerNorm: CPU twin against the double reference; the reference against finite differences.
#include "kernels/layer_norm/layer_norm.h"

#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/floats.h"

namespace longnet::test {
namespace {

struct Case {
  int64_t rows, groups, width;
  bool residual, strided, accumulate, in_place;
};

/// [T, G, W] view with `gap` unused elements after every row of groups.
TensorView view_of(std::vector<float>& values, const Case& c, int64_t gap) {
  TensorView view(values.data(), DType::kF32, {c.rows, c.groups, c.width});
  view.stride = {c.groups * c.width + gap, c.width, 1, 0};
  return view;
}
TensorView flat(std::vector<float>& values) {
  return TensorView(values.data(), DType::kF32, {static_cast<int64_t>(values.size())});
}

class LayerNorm : public ::testing::TestWithParam<Case> {};

TEST_P(LayerNorm, ForwardAndBackwardAgreeWithReference) {
  const Case c = GetParam();
  const int64_t gap = c.strided ? 5 : 0;
  const int64_t size = c.rows * (c.groups * c.width + gap), stats = c.rows * c.groups;
  // A mean far from zero: what a one-pass variance would get wrong.
  std::vector<float> x = random_values(size, 1), residual = random_values(size, 2);
  for (float& v : x) v += 30.0f;
  std::vector<float> weight = random_values(c.width, 3), bias = random_values(c.width, 4);
  Context context({.device = {}, .threads = 2, .counting = false});
  std::vector<float> out[2], sum[2], mean[2], rstd[2];
  for (int twin = 0; twin < 2; ++twin) {
    out[twin].assign(size, 7.0f);
    sum[twin].assign(size, 7.0f);
    mean[twin].assign(stats, 0);
    rstd[twin].assign(stats, 0);
    const LayerNormForward args{.out = view_of(out[twin], c, gap),
                                .sum = c.residual ? view_of(sum[twin], c, gap) : TensorView{},
                                .mean = flat(mean[twin]),
                                .rstd = flat(rstd[twin]),
                                .x = view_of(x, c, gap),
                                .residual = c.residual ? view_of(residual, c, gap) : TensorView{},
                                .weight = flat(weight),
                                .bias = flat(bias),
                                .eps = 1e-5f};
    twin ? layer_norm_forward(context, args) : reference::layer_norm_forward(args);
  }
  EXPECT_LE(error_ratio(difference(out[1], out[0]), 0, c.width == 1 ? 1e-4 : 2e-5), 1.0);
  EXPECT_EQ(sum[1], sum[0]);
  EXPECT_LE(error_ratio(difference(mean[1], mean[0]), 0, 1e-6), 1.0);
  EXPECT_LE(error_ratio(difference(rstd[1], rstd[0]), 0, 2e-5), 1.0);

  std::vector<float> grad_out = random_values(size, 5), grad_x[2], grad_weight[2], grad_bias[2];
  std::vector<float>& input = c.residual ? sum[0] : x;
  std::vector<char> workspace(layer_norm_backward_workspace_bytes(context, c.width));
  for (int twin = 0; twin < 2; ++twin) {
    grad_x[twin] = c.in_place ? grad_out : random_values(size, 6);
    grad_weight[twin] = random_values(c.width, 7);
    grad_bias[twin] = random_values(c.width, 8);
    const LayerNormBackward args{
        .grad_x = view_of(grad_x[twin], c, gap),
        .grad_weight = flat(grad_weight[twin]),
        .grad_bias = flat(grad_bias[twin]),
        .grad_out = c.in_place ? view_of(grad_x[twin], c, gap) : view_of(grad_out, c, gap),
        .x = view_of(input, c, gap),
        .mean = flat(mean[0]),
        .rstd = flat(rstd[0]),
        .weight = flat(weight),
        .accumulate = c.accumulate};
    // The reference cannot work in place: give it a copy.
    if (twin == 0 && c.in_place) {
      LayerNormBackward apart = args;
      apart.grad_out = view_of(grad_out, c, gap);
      reference::layer_norm_backward(apart);
    } else {
      twin ? layer_norm_backward(context, args, workspace.data())
           : reference::layer_norm_backward(args);
    }
  }
  EXPECT_LE(error_ratio(difference(grad_x[1], grad_x[0]), 0, 2e-5), 1.0);
  EXPECT_LE(error_ratio(difference(grad_weight[1], grad_weight[0])), 1.0);
  EXPECT_LE(error_ratio(difference(grad_bias[1], grad_bias[0])), 1.0);
}

INSTANTIATE_TEST_SUITE_P(Shapes, LayerNorm,
                         ::testing::Values(Case{1, 1, 7, false, false, false, false},
                                           Case{5, 1, 33, true, false, true, false},
                                           Case{64, 1, 192, true, false, false, false},
                                           Case{40, 1, 768, false, false, true, false},
                                           Case{37, 4, 16, false, true, false, true},
                                           Case{301, 6, 32, false, true, false, true},
                                           Case{3, 1, 8, true, true, true, false}));

// Every mix of types that a bf16 model uses, and all-bf16; widths beyond one piece of a row.
struct Types {
  DType x, sum, out;
};
class LayerNormTypes : public ::testing::TestWithParam<std::tuple<Types, Case>> {};

TEST_P(LayerNormTypes, AgreeWithReference) {
  const auto [types, c] = GetParam();
  const int64_t gap = c.strided ? 5 : 0;
  const int64_t size = c.rows * (c.groups * c.width + gap), stats = c.rows * c.groups;
  const auto shaped = [&](Floats& values) {
    TensorView view = values.view({c.rows, c.groups, c.width});
    view.stride = {c.groups * c.width + gap, c.width, 1, 0};
    return view;
  };
  std::vector<float> far = random_values(size, 1);
  for (float& v : far) v += 3.0f;
  Floats x(types.x, far), residual(types.x, random_values(size, 2));
  std::vector<float> weight = random_values(c.width, 3), bias = random_values(c.width, 4);
  Context context({.device = {}, .threads = 2, .counting = false});
  std::vector<float> out[2], sums[2], mean[2], rstd[2];
  Floats input = x;
  for (int twin = 0; twin < 2; ++twin) {
    Floats out_rows(types.out, std::vector<float>(size, 7.0f));
    Floats sum_rows(types.sum, std::vector<float>(size, 7.0f));
    mean[twin].assign(stats, 0);
    rstd[twin].assign(stats, 0);
    const LayerNormForward args{.out = shaped(out_rows),
                                .sum = c.residual ? shaped(sum_rows) : TensorView{},
                                .mean = flat(mean[twin]),
                                .rstd = flat(rstd[twin]),
                                .x = shaped(x),
                                .residual = c.residual ? shaped(residual) : TensorView{},
                                .weight = flat(weight),
                                .bias = flat(bias),
                                .eps = 1e-5f};
    twin ? layer_norm_forward(context, args) : reference::layer_norm_forward(args);
    out[twin] = out_rows.floats();
    sums[twin] = sum_rows.floats();
    if (c.residual) input = sum_rows;
  }
  EXPECT_LE(rounding_ratio(types.out, out[1], out[0], 2), 1.0);
  EXPECT_EQ(sums[1], sums[0]);
  // A float sum of thousands of numbers errs more the fewer partial sums it is cut into, which
  // depends on the vector width that the compiler chose; one by one it was seen to err by 7.6e-6.
  EXPECT_LE(error_ratio(difference(mean[1], mean[0]), 0, c.width > 1024 ? 1e-5 : 1e-6), 1.0);
  EXPECT_LE(error_ratio(difference(rstd[1], rstd[0]), 0, 2e-5), 1.0);

  std::vector<float> grad_x[2], grad_weight[2], grad_bias[2];
  std::vector<char> workspace(layer_norm_backward_workspace_bytes(context, c.width));
  for (int twin = 0; twin < 2; ++twin) {
    Floats grad_out(types.out, random_values(size, 5));
    Floats grad(c.in_place ? types.out : types.sum, random_values(size, c.in_place ? 5 : 6));
    grad_weight[twin] = random_values(c.width, 7);
    grad_bias[twin] = random_values(c.width, 8);
    LayerNormBackward args{.grad_x = shaped(grad),
                           .grad_weight = flat(grad_weight[twin]),
                           .grad_bias = flat(grad_bias[twin]),
                           .grad_out = shaped(grad_out),
                           .x = shaped(input),
                           .mean = flat(mean[0]),
                           .rstd = flat(rstd[0]),
                           .weight = flat(weight),
                           .accumulate = c.accumulate};
    if (twin == 1 && c.in_place) args.grad_out = args.grad_x;
    twin ? layer_norm_backward(context, args, workspace.data())
         : reference::layer_norm_backward(args);
    grad_x[twin] = grad.floats();
  }
  EXPECT_LE(rounding_ratio(c.in_place ? types.out : types.sum, grad_x[1], grad_x[0], 2), 1.0);
  EXPECT_LE(error_ratio(difference(grad_weight[1], grad_weight[0])), 1.0);
  EXPECT_LE(error_ratio(difference(grad_bias[1], grad_bias[0])), 1.0);
}

INSTANTIATE_TEST_SUITE_P(
    Mixed, LayerNormTypes,
    ::testing::Combine(::testing::Values(Types{DType::kF32, DType::kF32, DType::kBF16},
                                         Types{DType::kBF16, DType::kBF16, DType::kBF16},
                                         Types{DType::kBF16, DType::kF32, DType::kF32}),
                       ::testing::Values(Case{1, 1, 7, false, false, false, false},
                                         Case{5, 1, 33, true, false, true, false},
                                         Case{40, 1, 2500, true, false, true, false},
                                         Case{64, 1, 192, true, false, false, false},
                                         Case{37, 4, 16, false, true, false, true})));

TEST(LayerNormReference, BackwardIsTheDerivative) {
  const Case c{3, 1, 6, false, false, false, false};
  std::vector<float> x = random_values(18, 1), weight = random_values(6, 2),
                     bias = random_values(6, 3), grad_out = random_values(18, 4);
  std::vector<float> out(18), mean(3), rstd(3), grad_x(18), grad_weight(6), grad_bias(6);
  const auto loss = [&] {
    reference::layer_norm_forward({.out = view_of(out, c, 0),
                                   .sum = {},
                                   .mean = flat(mean),
                                   .rstd = flat(rstd),
                                   .x = view_of(x, c, 0),
                                   .residual = {},
                                   .weight = flat(weight),
                                   .bias = flat(bias),
                                   .eps = 1e-5f});
    double sum = 0;
    for (int i = 0; i < 18; ++i) sum += double(out[i]) * grad_out[i];
    return sum;
  };
  loss();
  reference::layer_norm_backward({.grad_x = view_of(grad_x, c, 0),
                                  .grad_weight = flat(grad_weight),
                                  .grad_bias = flat(grad_bias),
                                  .grad_out = view_of(grad_out, c, 0),
                                  .x = view_of(x, c, 0),
                                  .mean = flat(mean),
                                  .rstd = flat(rstd),
                                  .weight = flat(weight),
                                  .accumulate = false});
  const auto check = [&](std::vector<float>& values, const std::vector<float>& gradient) {
    for (size_t i = 0; i < values.size(); ++i) {
      const float kept = values[i];
      values[i] = kept + 1e-2f;
      const double up = loss();
      values[i] = kept - 1e-2f;
      const double down = loss();
      values[i] = kept;
      EXPECT_NEAR((up - down) / 2e-2, gradient[i], 3e-3) << i;
    }
  };
  check(x, grad_x);
  check(weight, grad_weight);
  check(bias, grad_bias);
}

TEST(LayerNorm, RefusesWrongShapes) {
  Context context;
  std::vector<float> x(12), stat(2), w(6), other(5);
  const Case c{2, 1, 6, false, false, false, false};
  LayerNormForward args{.out = view_of(x, c, 0),
                        .sum = {},
                        .mean = flat(stat),
                        .rstd = flat(stat),
                        .x = view_of(x, c, 0),
                        .residual = {},
                        .weight = flat(w),
                        .bias = flat(w),
                        .eps = 1e-5f};
  args.weight = flat(other);
  EXPECT_THROW(layer_norm_forward(context, args), Error);
}

}  // namespace
}  // namespace longnet::test
