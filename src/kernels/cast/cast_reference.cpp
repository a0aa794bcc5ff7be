// The definition of cast.h, one thread: the nearer of the two bf16 neighbours of a number. Twin:
// cast_cpu.cpp.
#include <cmath>
#include <limits>

#include "kernels/cast/cast.h"

namespace longnet::reference {
namespace {

// 1. the value of a bf16, from its sign, exponent and fraction
double value_of(uint16_t bits) {
  const int exponent = bits >> 7 & 0xff, fraction = bits & 0x7f;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 0xff)
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(fraction, -126 - 7);
  return sign * std::ldexp(128 + fraction, exponent - 127 - 7);
}

// 2. the nearest bf16: magnitudes rise with their bits, so the place is found by bisection
uint16_t nearest(double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return sign | 0x7fc0;
  const double magnitude = std::abs(x);
  uint16_t low = 0, high = 0x7f80;  // 0 and infinity
  while (high - low > 1) {
    const uint16_t middle = static_cast<uint16_t>((low + high) / 2);
    (value_of(middle) <= magnitude ? low : high) = middle;
  }
  // Infinity takes the place of the number after the largest one.
  const double above = high == 0x7f80 ? std::ldexp(1.0, 128) : value_of(high);
  const double to_low = magnitude - value_of(low), to_high = above - magnitude;
  const bool up = to_high < to_low || (to_high == to_low && low % 2 == 1);
  return sign | (up || std::isinf(magnitude) ? high : low);
}

}  // namespace

// 3. every element
void cast(const TensorView& out, const TensorView& in) {
  for (int64_t i = 0; i < in.elements(); ++i) {
    const double x =
        in.dtype == DType::kBF16 ? value_of(in.as<bf16>()[i].bits) : double(in.f32()[i]);
    if (out.dtype == DType::kBF16)
      out.as<bf16>()[i].bits = nearest(x);
    else
      out.f32()[i] = static_cast<float>(x);
  }
}

}  // namespace longnet::reference
