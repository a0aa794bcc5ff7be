// The products that a BLAS library is asked for, worked out by a plain column-major loop on the
// host and compared with linear.h's reference; and what makes two products share an algorithm.
#include "kernels/linear/linear_product.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/linear/linear.h"
#include "kernels/linear/linear_cublaslt.h"
#include "support/compare.h"

namespace longnet::test {
namespace {

using internal::Product;
using internal::ProductShape;

/// What BLAS documents for D = op(A) op(B) + bias + D, column-major, f32, in double.
void column_major_product(const Product& p) {
  const ProductShape& s = p.shape;
  const auto* a = static_cast<const float*>(p.a);
  const auto* b = static_cast<const float*>(p.b);
  const auto* bias = static_cast<const float*>(p.bias);
  auto* d = static_cast<float*>(p.d);
  for (int64_t column = 0; column < s.n; ++column)
    for (int64_t row = 0; row < s.m; ++row) {
      double sum = s.has_bias ? bias[row] : 0.0;
      for (int64_t i = 0; i < s.k; ++i)
        sum += double(s.transpose_a ? a[i + row * s.lda] : a[row + i * s.lda]) *
               (s.transpose_b ? b[column + i * s.ldb] : b[i + column * s.ldb]);
      float& out = d[row + column * s.ldd];
      out = static_cast<float>(sum + (s.accumulate ? out : 0.0f));
    }
}

/// [rows, columns] inside wider rows, filled at random.
struct Matrix {
  Matrix(int64_t rows, int64_t columns, int64_t padding, uint64_t seed)
      : values(random_values(rows * (columns + padding), seed)),
        view(TensorView(values.data(), DType::kF32, {rows, columns + padding})
                 .slice(1, 0, columns)) {}
  std::vector<float> values;
  TensorView view;
};

struct Case {
  int64_t t, o, i, padding;
};

class LinearProduct : public testing::TestWithParam<Case> {};

TEST_P(LinearProduct, IsWhatTheReferenceSays) {
  const auto [t, o, i, padding] = GetParam();
  for (const bool accumulate : {false, true})
    for (const bool with_bias : {false, true}) {
      Matrix x(t, i, padding, 1), weight(o, i, 2 * padding, 2), out(t, o, padding, 3);
      Matrix expected(t, o, padding, 3), bias(1, o, 0, 4);
      const TensorView bias_view = with_bias ? bias.view.view({o}) : TensorView();
      column_major_product(
          internal::forward_product(out.view, x.view, weight.view, bias_view, accumulate));
      reference::linear_forward(expected.view, x.view, weight.view, bias_view, accumulate);
      EXPECT_EQ(out.values, expected.values) << "forward " << accumulate << with_bias;

      Matrix grad_x(t, i, padding, 5), expected_x(t, i, padding, 5);
      column_major_product(
          internal::backward_input_product(grad_x.view, out.view, weight.view, accumulate));
      reference::linear_backward_input(expected_x.view, out.view, weight.view, accumulate);
      EXPECT_EQ(grad_x.values.size(), expected_x.values.size());
      for (size_t n = 0; n < grad_x.values.size(); ++n)
        ASSERT_NEAR(grad_x.values[n], expected_x.values[n], 1e-5) << "input gradient at " << n;
    }
  Matrix x(t, i, padding, 1), grad_out(t, o, padding, 2);
  Matrix grad_weight(o, i, padding, 3), expected(o, i, padding, 3);
  column_major_product(internal::backward_weight_product(grad_weight.view, grad_out.view, x.view));
  reference::linear_backward_weight(expected.view, TensorView(), grad_out.view, x.view);
  for (size_t n = 0; n < expected.values.size(); ++n)
    ASSERT_NEAR(grad_weight.values[n], expected.values[n], 1e-5) << "weight gradient at " << n;
}
INSTANTIATE_TEST_SUITE_P(Kernels, LinearProduct,
                         testing::Values(Case{5, 7, 3, 0}, Case{5, 7, 3, 4}, Case{1, 6, 9, 2},
                                         Case{8, 1, 4, 1}, Case{4, 3, 1, 0}, Case{1, 1, 1, 0}));

TEST(LinearProduct, OnlyEqualShapesShareAnAlgorithm) {
  alignas(256) static float memory[4096];
  const auto matrix = [](float* data, int64_t rows, int64_t columns) {
    return TensorView(data, DType::kF32, {rows, columns});
  };
  const TensorView x = matrix(memory, 4, 8), weight = matrix(memory + 1024, 16, 8),
                   out = matrix(memory + 2048, 4, 16), none;
  const TensorView bias(memory + 3072, DType::kF32, {16});
  const auto shape = [&](const TensorView& o, const TensorView& in, const TensorView& b,
                         bool accumulate) {
    return internal::forward_product(o, in, weight, b, accumulate).shape;
  };
  const ProductShape first = shape(out, x, none, false);
  EXPECT_EQ(first, shape(matrix(memory + 512, 4, 16), x, none, false));  // another address
  EXPECT_NE(first, shape(out, x, bias, false));
  EXPECT_NE(first, shape(out, x, none, true));
  EXPECT_NE(first, shape(matrix(memory + 513, 4, 16), x, none, false)) << "less alignment";
  TensorView wider = out;
  wider.stride[0] = 32;
  EXPECT_NE(first, shape(wider, x, none, false));
  EXPECT_NE(first, internal::backward_input_product(x, out, weight, false).shape);
  TensorView half_x = x, half_weight = weight;
  half_x.dtype = half_weight.dtype = DType::kBF16;
  EXPECT_NE(first, internal::forward_product(out, half_x, half_weight, none, false).shape);
}

TEST(LinearProduct, AlignmentIsThatOfEveryRow) {
  const auto alignment = [](uintptr_t address, int64_t row_bytes) {
    return internal::alignment_of(reinterpret_cast<const void*>(address), row_bytes);
  };
  EXPECT_EQ(alignment(0, 0), 256);
  EXPECT_EQ(alignment(256, 512), 256);
  EXPECT_EQ(alignment(4096, 1024), 256);
  EXPECT_EQ(alignment(4096 + 64, 1024), 64);
  EXPECT_EQ(alignment(4096, 1024 + 32), 32);
  EXPECT_EQ(alignment(4096 + 64, 1024 + 32), 32);
  EXPECT_EQ(alignment(4096 + 6, 1024), 2);
  EXPECT_EQ(alignment(4096, 7 * 2), 2);
  EXPECT_EQ(alignment(4096 + 1, 1024), 1);

  alignas(256) static float memory[4096];
  const auto matrix = [](int64_t rows, int64_t columns, int64_t stride) {
    TensorView view(memory, DType::kF32, {rows, columns});
    view.stride[0] = stride;
    return view;
  };
  const auto shape = [&](int64_t rows, int64_t stride) {
    return internal::forward_product(matrix(rows, 7, stride), matrix(rows, 12, 12),
                                     matrix(7, 12, 12), TensorView(), false)
        .shape;
  };
  EXPECT_EQ(shape(4, 7).alignment_d, 4);
  EXPECT_EQ(shape(4, 64).alignment_d, 256);
  EXPECT_EQ(shape(4, 7).alignment_a, 16);  // rows of 48 bytes
  EXPECT_EQ(shape(4, 7).alignment_b, 16);
  // One row, with the room of a longer matrix's or a stride that says nothing.
  EXPECT_EQ(shape(1, 64).ldd, 64);
  EXPECT_EQ(shape(1, 64).alignment_d, 256);
  EXPECT_EQ(shape(1, 0).ldd, 7);
}

TEST(LinearProduct, LargeOddOutputsAreTakenInTwo) {
  static char memory[256];
  const auto whole = [](DType dtype, int64_t columns, int64_t stride) {
    TensorView view(memory, dtype, {3, columns});
    view.stride[0] = stride;
    return internal::whole_columns(view);
  };
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    EXPECT_EQ(whole(dtype, 100277, 100288), 100272);
    EXPECT_EQ(whole(dtype, 100272, 100288), 100272);
    EXPECT_EQ(whole(dtype, 100277, 100277), 100277) << "rows without alignment";
    EXPECT_EQ(whole(dtype, 4101, 4160), 4096);
    EXPECT_EQ(whole(dtype, 4095, 4096), 4095) << "small";
  }
}

TEST(LinearProduct, TypesThatNoLibraryOffersAreRefused) {
  alignas(256) static float memory[256];
  const TensorView f32(memory, DType::kF32, {4, 4});
  TensorView bf16 = f32;
  bf16.dtype = DType::kBF16;
  const TensorView bias(memory, DType::kF32, {4}), none;
  EXPECT_NO_THROW(internal::forward_product(bf16, bf16, bf16, none, false));
  EXPECT_NO_THROW(internal::forward_product(f32, bf16, bf16, bias, false));
  EXPECT_THROW(internal::forward_product(f32, f32, bf16, none, false), Error);
  EXPECT_THROW(internal::forward_product(bf16, f32, f32, none, false), Error);
  EXPECT_THROW(internal::forward_product(bf16, bf16, bf16, bias, false), Error);
  EXPECT_THROW(internal::backward_weight_product(bf16, bf16, bf16), Error);
}

TEST(LinearProduct, ColumnSumSplits) {
  const int64_t plenty = 32 << 20;
  EXPECT_EQ(internal::column_sum_splits(1, 192, plenty), 1);
  EXPECT_EQ(internal::column_sum_splits(512, 192, plenty), 1);
  EXPECT_EQ(internal::column_sum_splits(513, 192, plenty), 2);
  EXPECT_EQ(internal::column_sum_splits(1 << 20, 192, plenty), 64);
  EXPECT_EQ(internal::column_sum_splits(1 << 20, 192, 5 * 192 * 4), 5) << "no more than fits";
  EXPECT_EQ(internal::column_sum_splits(1 << 20, 192, 0), 1);
}

TEST(LinearProduct, WithoutCudaTheLibraryTwinSaysSo) {
  if (device_runtime::built_with_cuda()) GTEST_SKIP() << "built with CUDA";
  EXPECT_EQ(cublaslt::workspace_bytes(), 0);
  Context context;
  EXPECT_THROW(cublaslt::linear_forward(context, {}, {}, {}, {}, false), Error);
}

}  // namespace
}  // namespace longnet::test
