// Column sums of linear_column_sum_cuda.cu (the bias gradient, and the norms' weight gradients)
// against sums in double: one and several runs of rows, strided rows, odd widths, f32 and bf16.
#include "kernels/linear/linear_cublaslt.h"
#include "simt/device_values.h"
#include "simt/support.h"
#include "support/floats.h"

namespace longnet::simt_test {
namespace {

void check(int64_t rows, int64_t columns, int64_t stride, int64_t splits, DType dtype) {
  const test::Floats matrix(dtype, test::random_values(rows * stride, 1));
  const std::vector<float> values = matrix.floats(), start = test::random_values(columns, 2);
  std::vector<float> want(columns);
  for (int64_t c = 0; c < columns; ++c) {
    double sum = start[c];
    for (int64_t r = 0; r < rows; ++r) sum += values[r * stride + c];
    want[c] = static_cast<float>(sum);
  }
  Context context = gpu_context();
  const DeviceValues d_matrix(dtype, values), sums(DType::kF32, start);
  const DeviceValues partial(DType::kF32, splits * columns);
  cublaslt::add_column_sums(context.stream(), static_cast<float*>(sums.data()),
                            static_cast<float*>(partial.data()), d_matrix.data(), dtype, rows,
                            columns, stride, splits);
  context.wait();
  EXPECT_LE(test::error_ratio(test::difference(sums.floats(), want)), 1)
      << rows << " x " << columns << " in " << splits;
}

TEST(ColumnSumSimt, AgreesWithDoubleSums) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    under_every_order(1, [&](simt::Order) { check(1, 1, 1, 1, dtype); });
    under_every_order(2, [&](simt::Order) { check(7, 33, 40, 1, dtype); });
    under_every_order(3, [&](simt::Order) { check(130, 96, 96, 5, dtype); });
    under_every_order(4, [&](simt::Order) { check(9, 31, 31, 8, dtype); });
  }
}

TEST(ColumnSumSimt, MissingBarrierIsFound) {
  if (!simt::race_checked()) GTEST_SKIP() << "only in the race build";
  const std::string found = found_with_defect(69, [] { check(20, 40, 40, 1, DType::kF32); });
  EXPECT_NE(found.find("linear_column_sum_cuda.cu:"), std::string::npos) << found;
}

}  // namespace
}  // namespace longnet::simt_test
