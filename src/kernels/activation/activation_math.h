// Float exp, normal distribution function and logistic function in a form that compilers vectorise.
//
// Errors against double: exp 2 eps; normal_cdf 4 eps of the larger of the value and its complement.
#pragma once

#include <cstdint>

#include "core/clones.h"

namespace longnet {

/// exp(x): 2^n times the Taylor series of exp on |r| <= ln(2) / 2, degree 7 (next term 5e-9).
/// Below -87 the result is about 1e-38, above 88 about 1e38 (no infinity); NaN stays NaN.
LN_INLINE float fast_exp(float x) {
  constexpr float kLog2E = 1.44269504088896341f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  int32_t bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  // The low bits of `shifted` hold n; moved into the exponent they give 2^n.
  const uint32_t scale_bits = (static_cast<uint32_t>(bits) << 23) + 0x3f800000u;
  float scale;
  __builtin_memcpy(&scale, &scale_bits, sizeof scale);
  return p * scale;
}

/// P(t) below.
LN_INLINE float normal_tail_series(float t) {
  float p = 0.03857315704226494f;
  p = p * t - 0.21456411480903625f;
  p = p * t + 0.3820682764053345f;
  p = p * t - 0.24839617311954498f;
  p = p * t + 0.2551330327987671f;
  p = p * t + 0.073099285364151f;
  p = p * t + 0.16697584092617035f;
  p = p * t + 0.17465563118457794f;
  p = p * t + 0.1862749457359314f;
  p = p * t + 0.18618007004261017f;
  return p * t;
}

/// Phi(x) and exp(-x^2 / 2). The upper tail is erfc(z) / 2 = exp(-z^2) P(t) / 2, z = |x| / sqrt(2),
/// t = 1 / (1 + 0.33 z); P fitted to erfc(z) exp(z^2) by reweighted least squares on Chebyshev
/// nodes, relative error 5e-8.
LN_INLINE float normal_cdf(float x, float* gaussian) {
  const float magnitude = x < 0 ? -x : x;
  const float t = 1.0f / (1.0f + 0.33f * 0.70710678118654752f * magnitude);
  const float e = fast_exp(-0.5f * x * x);
  const float p = normal_tail_series(t);
  const float tail = 0.5f * e * p;
  *gaussian = e;
  return x < 0 ? tail : 1.0f - tail;
}

LN_INLINE float logistic(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

/// gelu(x) = x Phi(x) and its derivative Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi).
LN_INLINE float gelu(float x) {
  float gaussian;
  return x * normal_cdf(x, &gaussian);
}
LN_INLINE float gelu_derivative(float x) {
  constexpr float kInverseSqrt2Pi = 0.39894228040143268f;
  float gaussian;
  const float cdf = normal_cdf(x, &gaussian);
  return cdf + x * gaussian * kInverseSqrt2Pi;
}

}  // namespace longnet
