// Activation with sub-norm: CPU twin against the double reference, reference against differences.
#include "kernels/activation/activation.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/activation/activation_math.h"
#include "support/compare.h"
#include "support/floats.h"

namespace longnet::test {
namespace {

TEST(ActivationMath, AgreesWithDouble) {
  double worst_exp = 0, worst_gelu = 0, worst_derivative = 0, worst_logistic = 0;
  for (int i = -200000; i <= 200000; ++i) {
    const float x = static_cast<float>(i) * 4e-4f;  // [-80, 80]
    worst_exp = std::max(worst_exp, std::abs(fast_exp(x) / std::exp(double(x)) - 1));
    const double cdf = 0.5 * std::erfc(-double(x) / std::sqrt(2.0));
    const double derivative = cdf + x * std::exp(-0.5 * double(x) * x) / std::sqrt(2 * M_PI);
    const double scale = std::max(1.0, std::abs(double(x)));
    worst_gelu = std::max(worst_gelu, std::abs(gelu(x) - x * cdf) / scale);
    worst_derivative = std::max(worst_derivative, std::abs(gelu_derivative(x) - derivative));
    worst_logistic =
        std::max(worst_logistic, std::abs(logistic(x) - 1 / (1 + std::exp(-double(x)))));
  }
  EXPECT_LE(worst_exp, 3e-7);
  EXPECT_LE(worst_gelu, 2.4e-7);  // two eps
  EXPECT_LE(worst_derivative, 5e-7);
  EXPECT_LE(worst_logistic, 2.4e-7);
  EXPECT_TRUE(std::isnan(gelu(NAN)));
  EXPECT_TRUE(std::isnan(fast_exp(NAN)));
}

struct Case {
  int64_t rows, width;
  Activation activation;
  bool norm;
};
class ActivationTwin : public ::testing::TestWithParam<Case> {};

struct Buffers {
  std::vector<float> out, mean, rstd, grad_hidden, grad_weight, grad_bias;
};

TEST_P(ActivationTwin, ForwardAndBackwardAgreeWithReference) {
  const auto [rows, width, activation, norm] = GetParam();
  const bool gated = activation == Activation::kSwiglu;
  const int64_t columns = gated ? 2 * width : width;  // fc1 | gate in one strided buffer
  std::vector<float> hidden = random_values(rows * columns, 1), weight = random_values(width, 2),
                     bias = random_values(width, 3), grad_out = random_values(rows * width, 4);
  Context context({.device = {}, .threads = 2, .counting = false});
  std::vector<char> workspace(activation_workspace_bytes(context, width));
  const auto part = [&](std::vector<float>& buffer, int64_t index) {
    return TensorView(buffer.data(), DType::kF32, {rows, columns}).slice(1, index * width, width);
  };
  const auto vector = [](std::vector<float>& v) {
    return TensorView(v.data(), DType::kF32, {static_cast<int64_t>(v.size())});
  };
  Buffers b[2];
  for (int twin = 0; twin < 2; ++twin) {
    Buffers& t = b[twin];
    t.out.resize(rows * width);
    t.mean.resize(rows);
    t.rstd.resize(rows);
    t.grad_hidden.resize(rows * columns);
    t.grad_weight = random_values(width, 5);
    t.grad_bias = random_values(width, 6);
    ActivationForward forward{.out = TensorView(t.out.data(), DType::kF32, {rows, width}),
                              .mean = {},
                              .rstd = {},
                              .hidden = part(hidden, 0),
                              .gate = gated ? part(hidden, 1) : TensorView{},
                              .weight = {},
                              .bias = {},
                              .eps = 1e-5f,
                              .activation = activation};
    ActivationBackward backward{.grad_hidden = part(t.grad_hidden, 0),
                                .grad_gate = gated ? part(t.grad_hidden, 1) : TensorView{},
                                .grad_weight = {},
                                .grad_bias = {},
                                .grad_out = TensorView(grad_out.data(), DType::kF32, {rows, width}),
                                .hidden = part(hidden, 0),
                                .gate = gated ? part(hidden, 1) : TensorView{},
                                .mean = {},
                                .rstd = {},
                                .weight = {},
                                .activation = activation};
    if (norm) {
      forward.mean = vector(t.mean);
      forward.rstd = vector(t.rstd);
      forward.weight = backward.weight = vector(weight);
      forward.bias = vector(bias);
      backward.grad_weight = vector(t.grad_weight);
      backward.grad_bias = vector(t.grad_bias);
    }
    twin ? activation_forward(context, forward, workspace.data())
         : reference::activation_forward(forward);
    if (norm) {
      backward.mean = vector(b[0].mean);
      backward.rstd = vector(b[0].rstd);
    }
    twin ? activation_backward(context, backward, workspace.data())
         : reference::activation_backward(backward);
  }
  EXPECT_LE(error_ratio(difference(b[1].out, b[0].out)), 1.0);
  EXPECT_LE(error_ratio(difference(b[1].grad_hidden, b[0].grad_hidden)), 1.0);
  EXPECT_LE(error_ratio(difference(b[1].grad_weight, b[0].grad_weight)), 1.0);
  EXPECT_LE(error_ratio(difference(b[1].grad_bias, b[0].grad_bias)), 1.0);

  // The reference's backward is the derivative of its forward, along the gradient itself.
  const auto loss = [&](std::vector<float>& input) {
    std::vector<float> out(rows * width), mean(rows), rstd(rows);
    ActivationForward forward{.out = TensorView(out.data(), DType::kF32, {rows, width}),
                              .mean = vector(mean),
                              .rstd = vector(rstd),
                              .hidden = part(input, 0),
                              .gate = gated ? part(input, 1) : TensorView{},
                              .weight = {},
                              .bias = {},
                              .eps = 1e-5f,
                              .activation = activation};
    if (norm) forward.weight = vector(weight), forward.bias = vector(bias);
    reference::activation_forward(forward);
    double sum = 0;
    for (size_t i = 0; i < out.size(); ++i) sum += double(out[i]) * grad_out[i];
    return sum;
  };
  double length = 0;
  for (float g : b[0].grad_hidden) length += double(g) * g;
  length = std::sqrt(length);
  std::vector<float> plus = hidden, minus = hidden;
  for (size_t i = 0; i < hidden.size(); ++i) {
    plus[i] += static_cast<float>(1e-2 * b[0].grad_hidden[i] / length);
    minus[i] -= static_cast<float>(1e-2 * b[0].grad_hidden[i] / length);
  }
  EXPECT_NEAR((loss(plus) - loss(minus)) / 2e-2, length, 2e-3 * length);
}

TEST_P(ActivationTwin, Bf16AgreesWithReference) {
  const auto [rows, width, activation, norm] = GetParam();
  const bool gated = activation == Activation::kSwiglu;
  const int64_t columns = gated ? 2 * width : width;
  constexpr DType kLow = DType::kBF16;
  Floats hidden(kLow, random_values(rows * columns, 1));
  std::vector<float> weight = random_values(width, 2), bias = random_values(width, 3);
  Floats grad_out(kLow, random_values(rows * width, 4));
  Context context({.device = {}, .threads = 2, .counting = false});
  const int64_t bytes = activation_workspace_bytes(context, width, kLow);
  std::vector<float> workspace(bytes / 4, NAN);
  const auto part = [&](Floats& buffer, int64_t index) {
    return buffer.view({rows, columns}).slice(1, index * width, width);
  };
  const auto vector = [](std::vector<float>& v) {
    return TensorView(v.data(), DType::kF32, {static_cast<int64_t>(v.size())});
  };
  Buffers b[2];
  for (int twin = 0; twin < 2; ++twin) {
    Buffers& t = b[twin];
    Floats out(kLow, std::vector<float>(rows * width));
    Floats grad_hidden(kLow, std::vector<float>(rows * columns));
    t.mean.resize(rows);
    t.rstd.resize(rows);
    t.grad_weight = random_values(width, 5);
    t.grad_bias = random_values(width, 6);
    const ActivationForward forward{.out = out.view({rows, width}),
                                    .mean = norm ? vector(t.mean) : TensorView{},
                                    .rstd = norm ? vector(t.rstd) : TensorView{},
                                    .hidden = part(hidden, 0),
                                    .gate = gated ? part(hidden, 1) : TensorView{},
                                    .weight = norm ? vector(weight) : TensorView{},
                                    .bias = norm ? vector(bias) : TensorView{},
                                    .eps = 1e-5f,
                                    .activation = activation};
    twin ? activation_forward(context, forward, workspace.data())
         : reference::activation_forward(forward);
    const ActivationBackward backward{.grad_hidden = part(grad_hidden, 0),
                                      .grad_gate = gated ? part(grad_hidden, 1) : TensorView{},
                                      .grad_weight = norm ? vector(t.grad_weight) : TensorView{},
                                      .grad_bias = norm ? vector(t.grad_bias) : TensorView{},
                                      .grad_out = grad_out.view({rows, width}),
                                      .hidden = part(hidden, 0),
                                      .gate = gated ? part(hidden, 1) : TensorView{},
                                      .mean = norm ? vector(b[0].mean) : TensorView{},
                                      .rstd = norm ? vector(b[0].rstd) : TensorView{},
                                      .weight = norm ? vector(weight) : TensorView{},
                                      .activation = activation};
    twin ? activation_backward(context, backward, workspace.data())
         : reference::activation_backward(backward);
    t.out = out.floats();
    t.grad_hidden = grad_hidden.floats();
  }
  EXPECT_LE(rounding_ratio(kLow, b[1].out, b[0].out), 1.0);
  EXPECT_LE(rounding_ratio(kLow, b[1].grad_hidden, b[0].grad_hidden), 1.0);
  EXPECT_LE(error_ratio(difference(b[1].mean, b[0].mean)), 1.0);
  EXPECT_LE(error_ratio(difference(b[1].grad_weight, b[0].grad_weight)), 1.0);
  EXPECT_LE(error_ratio(difference(b[1].grad_bias, b[0].grad_bias)), 1.0);
}

INSTANTIATE_TEST_SUITE_P(Shapes, ActivationTwin,
                         ::testing::Values(Case{1, 1, Activation::kGelu, false},
                                           Case{3, 7, Activation::kGelu, true},
                                           Case{65, 192, Activation::kGelu, true},
                                           Case{40, 768, Activation::kGelu, false},
                                           Case{5, 33, Activation::kSwiglu, false},
                                           Case{70, 96, Activation::kSwiglu, true}));

}  // namespace
}  // namespace longnet::test
