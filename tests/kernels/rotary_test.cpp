// Rotary tables against long double angles, at every distance; rotation and its transpose.
#include "kernels/rotary/rotary.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "support/compare.h"

namespace longnet {
namespace {

TEST(Rotary, FactorsAgreeWithLongDoubleAngles) {
  for (int64_t head_dim : {2, 8, 64, 80}) {
    const RotaryTable table(head_dim, {Position::kRope, 10000, 512});
    RotaryTable::Cursor cursor;
    std::vector<float> cosine(head_dim / 2), sine(head_dim / 2);
    for (int64_t position : {int64_t{0}, int64_t{1}, int64_t{-1}, int64_t{4095}, int64_t{4096},
                             int64_t{-4096}, int64_t{-4097}, int64_t{123456}, int64_t{-24576},
                             int64_t{1} << 20, int64_t{1000000000}, int64_t{-1000000000}}) {
      table.factors(position, false, cursor, cosine.data(), sine.data());
      for (int64_t i = 0; i < head_dim / 2; ++i) {
        const long double angle =
            position * (long double)std::pow(10000.0, -2.0 * double(i) / double(head_dim));
        EXPECT_NEAR(cosine[i], double(std::cos(angle)), 3e-7) << position << " pair " << i;
        EXPECT_NEAR(sine[i], double(std::sin(angle)), 3e-7) << position << " pair " << i;
      }
    }
  }
}

TEST(Rotary, XposFactorsOfQueryAndKey) {
  const int64_t head_dim = 32;
  const RotaryTable table(head_dim, {Position::kXpos, 10000, 512});
  RotaryTable::Cursor cursor;
  std::vector<float> cosine(16), sine(16);
  for (int64_t position : {0, 5, -5, 4100, -4100, 24576, -24576}) {
    for (bool key : {false, true}) {
      table.factors(position, key, cursor, cosine.data(), sine.data());
      for (int64_t i = 0; i < 16; ++i) {
        const double z = (2.0 * double(i) + 0.4 * 32) / (1.4 * 32);
        const double factor = std::pow(z, (key ? -1.0 : 1.0) * double(position) / 512);
        const double angle = double(position) * std::pow(10000.0, -2.0 * double(i) / 32);
        EXPECT_NEAR(cosine[i] / factor, std::cos(angle), 3e-7) << position << " pair " << i;
        EXPECT_NEAR(sine[i] / factor, std::sin(angle), 3e-7) << position << " pair " << i;
      }
    }
  }
}

TEST(Rotary, CursorMayJump) {
  // The result must not depend on which position came before.
  const RotaryTable table(16, {Position::kXpos, 10000, 512});
  RotaryTable::Cursor walking;
  for (int64_t position : {0, 9000, -1, 8999, -8192, 4096}) {
    RotaryTable::Cursor fresh;
    float a[16], b[16];
    table.factors(position, true, walking, a, a + 8);
    table.factors(position, true, fresh, b, b + 8);
    for (int i = 0; i < 16; ++i) EXPECT_EQ(a[i], b[i]) << position;
  }
}

TEST(Rotary, TransposedIsTheAdjoint) {
  // <R x, y> = <x, R^T y>
  const int64_t head_dim = 24;
  const RotaryTable table(head_dim, {Position::kXpos, 10000, 512});
  RotaryTable::Cursor cursor;
  std::vector<float> cosine(12), sine(12);
  table.factors(-777, true, cursor, cosine.data(), sine.data());
  const std::vector<float> x = test::random_values(head_dim, 1),
                           y = test::random_values(head_dim, 2);
  std::vector<float> turned(head_dim), back(head_dim, 0.5f);
  rotate_row(turned.data(), x.data(), cosine.data(), sine.data(), 12);
  rotate_row_transposed_add(back.data(), y.data(), cosine.data(), sine.data(), 12);
  double left = 0, right = 0;
  for (int64_t d = 0; d < head_dim; ++d) {
    left += double(turned[d]) * y[d];
    right += x[d] * (double(back[d]) - 0.5);
  }
  EXPECT_NEAR(left, right, 1e-5);
  std::vector<float> in_place = x;
  rotate_row(in_place.data(), in_place.data(), cosine.data(), sine.data(), 12);
  EXPECT_EQ(in_place, turned);
}

TEST(Rotary, NoneNeedsNoEvenDimensionAndOddIsRefused) {
  EXPECT_FALSE(RotaryTable(33, {}).enabled());
  EXPECT_THROW(RotaryTable(33, {Position::kRope, 10000, 512}), Error);
}

}  // namespace
}  // namespace longnet
