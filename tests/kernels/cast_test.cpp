// Cast: CPU twin and scalar functions against the reference, over every bf16 and its borders.
#include "kernels/cast/cast.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "core/bf16.h"
#include "kernels/cast/cast_cpu.h"
#include "support/compare.h"

namespace longnet::test {
namespace {

/// Every bf16, the midpoints between neighbours and the floats next to those, random bits.
std::vector<float> hard_values() {
  std::vector<float> values;
  const auto add_bits = [&](uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    values.push_back(x);
  };
  for (uint32_t high = 0; high < 0x10000; ++high)
    for (uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
      add_bits(high << 16 | low);
  std::mt19937 random(1);
  for (int i = 0; i < 100000; ++i) add_bits(static_cast<uint32_t>(random()));
  return values;
}

TEST(Cast, RoundsToNearestEvenAsTheReference) {
  Context context({.device = {}, .threads = 2, .counting = false});
  std::vector<float> in = hard_values();
  const int64_t n = static_cast<int64_t>(in.size());
  std::vector<bf16> out[2] = {std::vector<bf16>(n), std::vector<bf16>(n)};
  std::vector<float> back[2] = {std::vector<float>(n), std::vector<float>(n)};
  const TensorView in_view(in.data(), DType::kF32, {n});
  for (int twin = 0; twin < 2; ++twin) {
    const TensorView low(out[twin].data(), DType::kBF16, {n});
    const TensorView high(back[twin].data(), DType::kF32, {n});
    twin ? cast(context, low, in_view) : reference::cast(low, in_view);
    twin ? cast(context, high, low) : reference::cast(high, low);
  }
  int64_t wrong = 0;
  for (int64_t i = 0; i < n; ++i) {
    const bool nan = std::isnan(in[i]);
    wrong += nan ? !std::isnan(back[1][i]) : out[1][i].bits != out[0][i].bits;
    wrong += nan ? !std::isnan(back[0][i]) : std::memcmp(&back[1][i], &back[0][i], 4) != 0;
    wrong += to_bf16(in[i]).bits != out[1][i].bits;
    // What is a bf16 already stays.
    if (!nan && std::isfinite(in[i]) && std::abs(in[i]) > 1e-37f)
      wrong += std::abs(back[1][i] - in[i]) > std::abs(in[i]) / 256 && std::isfinite(back[1][i]);
  }
  EXPECT_EQ(wrong, 0);
}

TEST(Cast, SameTypeIsACopyAndTypesAreChecked) {
  Context context;
  std::vector<float> in = random_values(70000, 1), out(70000);
  const TensorView in_view(in.data(), DType::kF32, {700, 100});
  cast(context, TensorView(out.data(), DType::kF32, {70000}), in_view);
  EXPECT_EQ(out, in);
  EXPECT_THROW(cast(context, TensorView(out.data(), DType::kF32, {69999}), in_view), Error);
  EXPECT_THROW(cast(context, TensorView(out.data(), DType::kI64, {70000}), in_view), Error);
  EXPECT_THROW(
      cast(context, TensorView(out.data(), DType::kBF16, {700, 99}), in_view.slice(1, 0, 99)),
      Error);
}

}  // namespace
}  // namespace longnet::test
