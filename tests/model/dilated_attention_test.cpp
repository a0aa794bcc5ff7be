// The DilatedAttention module: shapes, gradients against differences, and what it refuses.
#include "model/dilated_attention.h"

#include <gtest/gtest.h>

#include "support/compare.h"

namespace longnet::test {
namespace {

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double(a[i]) * b[i];
  return sum;
}

class ModuleGradient : public ::testing::TestWithParam<DilatedAttentionConfig> {};

TEST_P(ModuleGradient, AgreesWithDifferences) {
  DilatedAttention attention(GetParam());
  const int64_t batch = 2, tokens = 45, size = batch * tokens * GetParam().dim;
  const std::vector<float> x = random_values(size, 1), grad_y = random_values(size, 2);
  attention.zero_gradients();
  const std::vector<float> y = attention.forward(x, batch, tokens);
  ASSERT_EQ(y.size(), x.size());
  const std::vector<float> grad_x = attention.backward(grad_y);
  EXPECT_THROW(attention.backward(grad_y), Error) << "the first one used what the forward kept";
  // L = <y, grad_y>; move x along grad_x, then all parameters along their gradient.
  const double step = 1e-2;
  const auto loss = [&](const std::vector<float>& input) {
    return dot(attention.forward(input, batch, tokens), grad_y);
  };
  const double norm = std::sqrt(dot(grad_x, grad_x));
  std::vector<float> plus = x, minus = x;
  for (int64_t i = 0; i < size; ++i) {
    plus[i] += static_cast<float>(step * grad_x[i] / norm);
    minus[i] -= static_cast<float>(step * grad_x[i] / norm);
  }
  EXPECT_NEAR((loss(plus) - loss(minus)) / (2 * step), norm, 5e-3 * norm);

  const std::vector<float> gradient(attention.gradients().begin(), attention.gradients().end());
  const double weight_norm = std::sqrt(dot(gradient, gradient));
  ASSERT_GT(weight_norm, 0);
  const auto move = [&](double length) {
    for (size_t i = 0; i < gradient.size(); ++i)
      attention.parameters()[i] += static_cast<float>(length * gradient[i] / weight_norm);
  };
  move(step);
  const double up = loss(x);
  move(-2 * step);
  const double down = loss(x);
  EXPECT_NEAR((up - down) / (2 * step), weight_norm, 5e-3 * weight_norm);
}

INSTANTIATE_TEST_SUITE_P(Settings, ModuleGradient,
                         ::testing::Values(DilatedAttentionConfig{.dim = 32,
                                                                  .heads = 4,
                                                                  .branches = {{16, 2}},
                                                                  .qk_norm = true},
                                           DilatedAttentionConfig{.dim = 48,
                                                                  .heads = 3,
                                                                  .branches = {{8, 1}, {45, 4}},
                                                                  .position = "xpos",
                                                                  .sub_norm = true},
                                           DilatedAttentionConfig{.dim = 32,
                                                                  .heads = 2,
                                                                  .branches = {{16, 1}, {64, 3}},
                                                                  .causal = false,
                                                                  .position = "rope",
                                                                  .bias = false}));

TEST(DilatedAttention, OneSegmentLengthAndDilationOnALongBatch) {
  DilatedAttention attention({.dim = 512, .heads = 8, .branches = {{64, 2}}, .qk_norm = true});
  const int64_t batch = 2, tokens = 1024;  // [32, 8192, 512] is the same call
  const std::vector<float> x = random_values(batch * tokens * 512, 3);
  const std::vector<float> y = attention.forward(x, batch, tokens);
  for (float v : y) ASSERT_TRUE(std::isfinite(v));
  // Tokens of one segment do not see another's: changing segment 0 leaves segment 1 as it was.
  std::vector<float> changed = x;
  for (int64_t i = 0; i < 64 * 512; ++i) changed[i] += 1.0f;
  const std::vector<float> z = attention.forward(changed, batch, tokens);
  EXPECT_NE(std::vector<float>(y.begin(), y.begin() + 64 * 512),
            std::vector<float>(z.begin(), z.begin() + 64 * 512));
  for (size_t i = 64 * 512; i < y.size(); ++i) ASSERT_EQ(y[i], z[i]) << i;
}

TEST(DilatedAttention, ParametersByName) {
  DilatedAttention attention({.dim = 32, .heads = 4, .branches = {{16, 1}}, .qk_norm = true});
  EXPECT_EQ(attention.parameter("q_proj.weight").size(), 32u * 32u);
  EXPECT_EQ(attention.parameter("q_norm.weight").size(), 8u);
  EXPECT_THROW(attention.parameter("nothing"), Error);
  EXPECT_EQ(attention.parameter_names().size(), 12u);  // q k v out: 8, q_norm k_norm: 4
}

TEST(DilatedAttention, RefusesBadSettings) {
  EXPECT_THROW(DilatedAttention({.dim = 30, .heads = 4}), Error);
  EXPECT_THROW(DilatedAttention({.dim = 32, .heads = 4, .branches = {{0, 1}}}), Error);
  EXPECT_THROW(
      DilatedAttention(
          {.dim = 32, .heads = 4, .branches = {{8, 1}}, .causal = false, .position = "xpos"}),
      Error);
  DilatedAttention attention({.dim = 32, .heads = 4, .branches = {{8, 1}}});
  std::vector<float> wrong(31);
  EXPECT_THROW(attention.forward(wrong, 1, 1), Error);
  EXPECT_THROW(attention.backward(wrong), Error);
}

}  // namespace
}  // namespace longnet::test
