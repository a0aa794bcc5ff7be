// The wrappers mma, ldmatrix and cp.async against a double product, and stmatrix, under every order
// and on a GPU; their defects.
#include "simt/product.h"

#include <cmath>

#include "simt/device_values.h"
#include "simt/support.h"
#include "support/compare.h"

namespace longnet::simt_test {
namespace {

using test::difference;
using test::random_values;

std::vector<float> rounded(std::vector<float> values) {
  for (float& x : values) x = to_float(to_bf16(x));
  return values;
}

struct Product {
  int m = 64, n = 128, k = 104;  // four steps, the last one partial
  std::vector<float> a, b;       // numbers of bf16
  std::vector<float> c, expected;
  Product()
      : a(rounded(random_values(int64_t{m} * k, 1))), b(rounded(random_values(int64_t{k} * n, 2))) {
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) {
        double sum = 0;
        for (int d = 0; d < k; ++d) sum += double(a[i * k + d]) * b[d * n + j];
        expected.push_back(static_cast<float>(sum));
      }
  }
  void run() {
    c.assign(expected.size(), NAN);
    Context context = gpu_context();
    const DeviceValues d_a(DType::kBF16, a), d_b(DType::kBF16, b), d_c(DType::kF32, c);
    product_bf16(static_cast<float*>(d_c.data()), static_cast<const uint16_t*>(d_a.data()),
                 static_cast<const uint16_t*>(d_b.data()), m, n, k, context.stream());
    context.wait();
    c = d_c.floats();
  }
  double error() const { return difference(c, expected).max_difference; }
};

TEST(Product, AgreesWithDoubleUnderEveryOrder) {
  Product p;
  under_every_order(3, [&](simt::Order order) {
    p.run();
    EXPECT_LE(p.error(), 1e-4) << simt::order_name(order);
  });
}

TEST(Product, DefectsAreFound) {
  Product p;
  const auto run = [&] { p.run(); };
  // A wait that is too weak reads the poison of the copy under way.
  EXPECT_EQ(found_with_defect(20, run).find("deadlock"), std::string::npos);
  EXPECT_TRUE(!(p.error() <= 1e-4));
  EXPECT_NE(found_with_defect(22, run).find("ldmatrix at product.cu"), std::string::npos);
  found_with_defect(23, run);
  EXPECT_GT(p.error(), 0.1);
  if (!simt::race_checked()) return;
  EXPECT_NE(found_with_defect(21, run).find("race: "), std::string::npos);
  EXPECT_NE(found_with_defect(24, run).find("race: write after read"), std::string::npos);
}

/// Rows that store_matrix wrote from pairs that name their own place.
std::vector<float> stored_rows() {
  Context context = gpu_context();
  std::vector<float> pairs;  // bf16: of matrix i, row lane / 4, columns 2 (lane % 4) and the next
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      for (int column = 0; column < 2; ++column)
        pairs.push_back(float(64 * i + lane / 4 * 8 + lane % 4 * 2 + column));
  const DeviceValues from(DType::kBF16, pairs), to(DType::kBF16, 256);
  store_matrix_rows(static_cast<uint16_t*>(to.data()), static_cast<const uint32_t*>(from.data()),
                    context.stream());
  context.wait();
  return to.floats();
}

TEST(StoreMatrix, WritesTheRegistersOfLoadMatrix) {
  under_every_order(4, [&](simt::Order order) {
    const std::vector<float> rows = stored_rows();
    for (int i = 0; i < 256; ++i) ASSERT_EQ(rows[i], i) << simt::order_name(order);
  });
  if (!simt::race_checked()) return;
  EXPECT_NE(found_with_defect(26, stored_rows).find("race: "), std::string::npos);
}

}  // namespace
}  // namespace longnet::simt_test
