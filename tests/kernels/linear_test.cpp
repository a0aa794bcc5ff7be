// Linear layers: the oneDNN twin against the double reference, and the work it counts.
#include "kernels/linear/linear.h"

#include <gtest/gtest.h>
#include <omp.h>

#include "support/compare.h"
#include "support/floats.h"

namespace longnet::test {
namespace {

struct Case {
  int64_t t, o, i, gap;
  bool bias, accumulate;
};
class Linear : public ::testing::TestWithParam<Case> {};

TEST_P(Linear, AgreesWithReference) {
  const auto [t, o, i, gap, with_bias, accumulate] = GetParam();
  Context context;
  const auto matrix = [](std::vector<float>& v, int64_t rows, int64_t columns, int64_t extra) {
    TensorView view(v.data(), DType::kF32, {rows, columns});
    view.stride[0] = columns + extra;
    return view;
  };
  std::vector<float> x = random_values(t * (i + gap) + 1, 1), weight = random_values(o * i, 2);
  std::vector<float> bias = random_values(o, 3), grad_out = random_values(t * (o + gap) + 1, 4);
  std::vector<float> out[2], grad_x[2], grad_weight[2], grad_bias[2];
  const TensorView bias_view = with_bias ? TensorView(bias.data(), DType::kF32, {o}) : TensorView{};
  for (int twin = 0; twin < 2; ++twin) {
    out[twin] = random_values(t * (o + gap) + 1, 5);
    grad_x[twin] = random_values(t * (i + gap) + 1, 6);
    grad_weight[twin] = random_values(o * i, 7);
    grad_bias[twin] = random_values(o, 8);
    const TensorView out_view = matrix(out[twin], t, o, gap), x_view = matrix(x, t, i, gap);
    const TensorView weight_view = matrix(weight, o, i, 0);
    const TensorView grad_out_view = matrix(grad_out, t, o, gap);
    const TensorView grad_x_view = matrix(grad_x[twin], t, i, gap);
    const TensorView grad_weight_view = matrix(grad_weight[twin], o, i, 0);
    const TensorView grad_bias_view =
        with_bias ? TensorView(grad_bias[twin].data(), DType::kF32, {o}) : TensorView{};
    if (twin == 0) {
      reference::linear_forward(out_view, x_view, weight_view, bias_view, accumulate);
      reference::linear_backward_input(grad_x_view, grad_out_view, weight_view, accumulate);
      reference::linear_backward_weight(grad_weight_view, grad_bias_view, grad_out_view, x_view);
    } else {
      linear_forward(context, out_view, x_view, weight_view, bias_view, accumulate);
      linear_backward_input(context, grad_x_view, grad_out_view, weight_view, accumulate);
      linear_backward_weight(context, grad_weight_view, grad_bias_view, grad_out_view, x_view);
    }
  }
  // Gaps between rows must stay as they were: whole buffers are compared.
  EXPECT_LE(error_ratio(difference(out[1], out[0])), 1.0);
  EXPECT_LE(error_ratio(difference(grad_x[1], grad_x[0])), 1.0);
  EXPECT_LE(error_ratio(difference(grad_weight[1], grad_weight[0])), 1.0);
  EXPECT_LE(error_ratio(difference(grad_bias[1], grad_bias[0])), 1.0);
  EXPECT_EQ(context.work().matmul_flops, 3 * 2.0 * t * o * i);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Linear,
    ::testing::Values(Case{0, 5, 4, 0, true, false}, Case{1, 1, 1, 0, true, false},
                      Case{1, 33, 7, 3, false, true}, Case{5, 7, 33, 0, true, true},
                      Case{130, 192, 64, 0, true, false}, Case{257, 96, 100, 12, true, false},
                      Case{700, 31, 48, 5, true, true}));

// bf16 operands, by oneDNN's own products where the processor has them and by widened ones (which a
// lower instruction set asks for): float32 results to float rounding, bf16 ones to one rounding.
TEST_P(Linear, Bf16AgreesWithReference) {
  const auto [t, o, i, gap, with_bias, accumulate] = GetParam();
  const auto matrix = [](Floats& values, int64_t rows, int64_t columns, int64_t extra) {
    TensorView view = values.view({rows, columns});
    view.stride[0] = columns + extra;
    return view;
  };
  for (const DType out_type : {DType::kF32, DType::kBF16}) {
    Floats x(DType::kBF16, random_values(t * (i + gap) + 1, 1));
    Floats weight(DType::kBF16, random_values(o * i, 2)), bias(DType::kBF16, random_values(o, 3));
    Floats grad_out(DType::kBF16, random_values(t * (o + gap) + 1, 4));
    const TensorView bias_view = with_bias ? bias.view({o}) : TensorView{};
    std::vector<std::vector<float>> expected;
    for (const Isa isa : {Isa::kGeneric, Isa::kGeneric, Context().isa()}) {
      Floats out(out_type, random_values(t * (o + gap) + 1, 5));
      Floats grad_x(out_type, random_values(t * (i + gap) + 1, 6));
      Floats grad_weight(DType::kF32, random_values(o * i, 7));
      Floats grad_bias(DType::kF32, random_values(o, 8));
      const TensorView out_view = matrix(out, t, o, gap), x_view = matrix(x, t, i, gap);
      const TensorView weight_view = weight.view({o, i}),
                       grad_out_view = matrix(grad_out, t, o, gap);
      const TensorView grad_x_view = matrix(grad_x, t, i, gap);
      const TensorView grad_bias_view = with_bias ? grad_bias.view({o}) : TensorView{};
      if (expected.empty()) {
        reference::linear_forward(out_view, x_view, weight_view, bias_view, accumulate);
        reference::linear_backward_input(grad_x_view, grad_out_view, weight_view, accumulate);
        reference::linear_backward_weight(grad_weight.view({o, i}), grad_bias_view, grad_out_view,
                                          x_view);
        expected = {out.floats(), grad_x.floats(), grad_weight.floats(), grad_bias.floats()};
        continue;
      }
      Context context;
      context.set_isa(isa);
      linear_forward(context, out_view, x_view, weight_view, bias_view, accumulate);
      linear_backward_input(context, grad_x_view, grad_out_view, weight_view, accumulate);
      linear_backward_weight(context, grad_weight.view({o, i}), grad_bias_view, grad_out_view,
                             x_view);
      EXPECT_LE(rounding_ratio(out_type, out.floats(), expected[0]), 1.0) << isa_name(isa);
      EXPECT_LE(rounding_ratio(out_type, grad_x.floats(), expected[1]), 1.0) << isa_name(isa);
      EXPECT_LE(error_ratio(difference(grad_weight.floats(), expected[2])), 1.0) << isa_name(isa);
      EXPECT_LE(error_ratio(difference(grad_bias.floats(), expected[3])), 1.0) << isa_name(isa);
      EXPECT_EQ(context.work().matmul_flops, 3 * 2.0 * t * o * i);
    }
  }
}

TEST(Linear, SameBitsEveryTime) {
  Context context;
  std::vector<float> x = random_values(300 * 64, 1), g = random_values(300 * 48, 2);
  const auto run = [&] {
    std::vector<float> w(48 * 64, 0.0f), b(48, 0.0f);
    linear_backward_weight(context, TensorView(w.data(), DType::kF32, {48, 64}),
                           TensorView(b.data(), DType::kF32, {48}),
                           TensorView(g.data(), DType::kF32, {300, 48}),
                           TensorView(x.data(), DType::kF32, {300, 64}));
    w.insert(w.end(), b.begin(), b.end());
    return w;
  };
  EXPECT_EQ(run(), run());
}

TEST(Linear, RefusesShapesThatDoNotFit) {
  Context context;
  std::vector<float> a(12), b(12), c(12);
  EXPECT_THROW(linear_forward(context, TensorView(a.data(), DType::kF32, {3, 4}),
                              TensorView(b.data(), DType::kF32, {3, 3}),
                              TensorView(c.data(), DType::kF32, {4, 2}), {}),
               Error);
  EXPECT_THROW(linear_forward(context, TensorView(a.data(), DType::kF32, {3, 4}),
                              TensorView(b.data(), DType::kBF16, {3, 3}),
                              TensorView(c.data(), DType::kF32, {4, 3}), {}),
               Error);
  EXPECT_THROW(linear_backward_weight(context, TensorView(a.data(), DType::kBF16, {3, 4}), {},
                                      TensorView(b.data(), DType::kF32, {2, 3}),
                                      TensorView(c.data(), DType::kF32, {2, 4})),
               Error);
}

/// The products of one layer with their sums, [T, O] + [T, I] + [O, I] floats.
std::vector<float> products(Context& context) {
  constexpr int64_t kT = 256, kO = 192, kI = 128;
  std::vector<float> x = random_values(kT * kI, 1), weight = random_values(kO * kI, 2);
  std::vector<float> grad_out = random_values(kT * kO, 3), bias = random_values(kO, 4);
  std::vector<float> result(kT * kO + kT * kI + kO * kI), grad_bias(kO);
  const auto f32 = [](float* data, int64_t rows, int64_t columns) {
    return TensorView(data, DType::kF32, {rows, columns});
  };
  const TensorView x_view = f32(x.data(), kT, kI), weight_view = f32(weight.data(), kO, kI);
  const TensorView grad_out_view = f32(grad_out.data(), kT, kO);
  float* grad_x = result.data() + kT * kO;
  linear_forward(context, f32(result.data(), kT, kO), x_view, weight_view,
                 TensorView(bias.data(), DType::kF32, {kO}), false);
  linear_backward_input(context, f32(grad_x, kT, kI), grad_out_view, weight_view, false);
  linear_backward_weight(context, f32(grad_x + kT * kI, kO, kI),
                         TensorView(grad_bias.data(), DType::kF32, {kO}), grad_out_view, x_view);
  return result;
}

/// OpenMP's settings of this thread, as they were at its end.
class OpenMpSettings {
 public:
  ~OpenMpSettings() {
    omp_set_num_threads(threads_);
    omp_set_dynamic(dynamic_);
  }

 private:
  int threads_ = omp_get_max_threads(), dynamic_ = omp_get_dynamic();
};

// A product made for one number of threads and run by fewer is wrong without a word.
TEST(LinearTeam, ProductsHoldForEveryTeam) {
  const OpenMpSettings settings;
  Context one({.device = {}, .threads = 1, .counting = false});
  const std::vector<float> expected = products(one);
  const auto expect_right = [&](Context& context, const std::string& what) {
    EXPECT_LE(error_ratio(difference(products(context), expected)), 1.0) << what;
  };
  Context four({.device = {}, .threads = 4, .counting = false});
  for (const int threads : {4, 1, 3, 8, 2}) {
    omp_set_num_threads(threads);
    expect_right(four, fmt::format("OpenMP's own number changed to {} between calls", threads));
    EXPECT_EQ(omp_get_max_threads(), threads) << "the caller's number comes back";
  }
  omp_set_dynamic(1);
  for (int call = 0; call < 3; ++call) expect_right(four, "teams by load (OMP_DYNAMIC)");
  EXPECT_EQ(omp_get_dynamic(), 1) << "the caller's setting comes back";
  expect_right(one, "another context's number");
  omp_set_dynamic(0);
  omp_set_num_threads(4);
#pragma omp parallel num_threads(2)
  {
#pragma omp critical
    expect_right(four, "inside another parallel region");
  }
  expect_right(four, "after it");
}

}  // namespace
}  // namespace longnet::test
