// Floats: numbers of a tensor stored as f32 or bf16, and the tolerance of one bf16 rounding.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/bf16.h"
#include "support/compare.h"

namespace longnet::test {

class Floats {
 public:
  /// Stored in `dtype`: rounded if that is bf16.
  Floats(DType dtype, const std::vector<float>& values) : dtype_(dtype) {
    if (dtype == DType::kF32) {
      high_ = values;
      return;
    }
    for (const float v : values) low_.push_back(to_bf16(v));
  }
  TensorView view(std::initializer_list<int64_t> shape) {
    void* data = dtype_ == DType::kF32 ? static_cast<void*>(high_.data()) : low_.data();
    return TensorView(data, dtype_, shape);
  }
  TensorView flat() { return view({static_cast<int64_t>(std::max(high_.size(), low_.size()))}); }
  std::vector<float> floats() const {
    std::vector<float> values = high_;
    for (const bf16 v : low_) values.push_back(to_float(v));
    return values;
  }

 private:
  DType dtype_;
  std::vector<float> high_;
  std::vector<bf16> low_;
};

/// Largest error as a share of the allowance. f32: the float tolerance times `float_factor`. bf16:
/// twin and reference round numbers that agree to it, so they differ by at most one step of bf16
/// (at most 2^-7 of the number) more.
inline double rounding_ratio(DType dtype, const std::vector<float>& actual,
                             const std::vector<float>& expected, double float_factor = 1) {
  const Difference d = difference(actual, expected);
  if (dtype == DType::kF32) return error_ratio(d, 0, 1e-5 * float_factor);
  if (!std::isfinite(d.max_difference)) return INFINITY;
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(double(actual[i]) - expected[i]);
    const double allowed = std::abs(expected[i]) / 128 + 1e-5 * float_factor * d.max_expected;
    if (error > 0) worst = std::max(worst, error / allowed);
  }
  return worst;
}

}  // namespace longnet::test
