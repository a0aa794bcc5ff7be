// Tolerances of the tests: max|a - b| <= 1e-5 max(max|b|, G / 10), NaN fails, -inf matches -inf.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace longnet::test {

struct Difference {
  double max_difference = 0;  // infinity if a NaN or an unmatched infinity is present
  double max_expected = 0;    // largest finite |expected|
};

inline Difference difference(const float* actual, const float* expected, int64_t n) {
  Difference d;
  for (int64_t i = 0; i < n; ++i) {
    if (std::isinf(expected[i]) && actual[i] == expected[i]) continue;
    if (!std::isfinite(actual[i]) || !std::isfinite(expected[i])) {
      d.max_difference = INFINITY;
      continue;
    }
    d.max_difference = std::max(d.max_difference, std::abs(double(actual[i]) - expected[i]));
    d.max_expected = std::max(d.max_expected, std::abs(double(expected[i])));
  }
  return d;
}
inline Difference difference(const std::vector<float>& actual, const std::vector<float>& expected) {
  Difference d = difference(actual.data(), expected.data(),
                            static_cast<int64_t>(std::min(actual.size(), expected.size())));
  if (actual.size() != expected.size()) d.max_difference = INFINITY;
  return d;
}

/// Error as a share of the allowance; <= 1 passes. largest: G, the largest gradient entry of the
/// case (0 for outputs).
inline double error_ratio(const Difference& d, double largest = 0, double tolerance = 1e-5) {
  const double allowed = tolerance * std::max(d.max_expected, largest / 10);
  if (d.max_difference == 0) return 0;
  return allowed > 0 ? d.max_difference / allowed : INFINITY;
}

inline std::vector<float> random_values(int64_t n, uint64_t seed, float deviation = 1.0f) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(n);
  for (float& v : values) v = normal(generator);
  return values;
}

}  // namespace longnet::test
