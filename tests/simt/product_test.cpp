// The wrappers mma, ldmatrix and cp.async against a double product, under every order; their
// defects.
#include "simt/product.h"

#include <cstring>

#include "simt/support.h"
#include "support/compare.h"

namespace longnet::simt_test {
namespace {

using test::difference;
using test::random_values;

uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x8000u) >> 16);
}
float from_bf16(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}

struct Product {
  int m = 64, n = 128, k = 104;  // four steps, the last one partial
  std::vector<uint16_t> a, b;
  std::vector<float> c, expected;
  Product() {
    for (float x : random_values(int64_t{m} * k, 1)) a.push_back(to_bf16(x));
    for (float x : random_values(int64_t{k} * n, 2)) b.push_back(to_bf16(x));
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) {
        double sum = 0;
        for (int d = 0; d < k; ++d)
          sum += double(from_bf16(a[i * k + d])) * from_bf16(b[d * n + j]);
        expected.push_back(static_cast<float>(sum));
      }
  }
  void run() {
    c.assign(expected.size(), NAN);
    product_bf16(c.data(), a.data(), b.data(), m, n, k, nullptr);
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

}  // namespace
}  // namespace longnet::simt_test
