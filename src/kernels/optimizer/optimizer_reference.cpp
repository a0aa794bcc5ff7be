// The definition of optimizer.h in double, one thread. Twin: optimizer.cpp.
#include <algorithm>
#include <cmath>

#include "kernels/optimizer/optimizer.h"

namespace longnet::reference {

// 1. AdamW
void adamw_update(const TensorView& weight, const TensorView& first_moment,
                  const TensorView& second_moment, const TensorView& gradient,
                  const AdamWOptions& options) {
  for (int64_t i = 0; i < weight.elements(); ++i) {
    float &w = weight.f32()[i], &m = first_moment.f32()[i], &v = second_moment.f32()[i];
    const double g = gradient.f32()[i] * options.gradient_scale;
    const double m_new = options.beta1 * m + (1.0 - options.beta1) * g;
    const double v_new = options.beta2 * v + (1.0 - options.beta2) * g * g;
    const double m_hat = m_new / (1.0 - std::pow(options.beta1, options.step));
    const double v_hat = v_new / (1.0 - std::pow(options.beta2, options.step));
    w = static_cast<float>(w - options.learning_rate * options.weight_decay * w -
                           options.learning_rate * m_hat / (std::sqrt(v_hat) + options.eps));
    m = static_cast<float>(m_new);
    v = static_cast<float>(v_new);
  }
}

// 2. StableAdamW
double stable_adamw_update(const TensorView& weight, const TensorView& first_moment,
                           const TensorView& second_moment, const TensorView& gradient,
                           const AdamWOptions& options) {
  const int64_t n = weight.elements();
  const auto beta_at = [&](double beta) {
    return beta * (1.0 - std::pow(beta, options.step - 1)) / (1.0 - std::pow(beta, options.step));
  };
  const double beta1 = beta_at(options.beta1), beta2 = beta_at(options.beta2);
  double ratio = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double g = gradient.f32()[i] * options.gradient_scale;
    first_moment.f32()[i] = static_cast<float>(beta1 * first_moment.f32()[i] + (1.0 - beta1) * g);
    second_moment.f32()[i] =
        static_cast<float>(beta2 * second_moment.f32()[i] + (1.0 - beta2) * g * g);
    ratio += g * g / std::max<double>(second_moment.f32()[i], options.eps * options.eps);
  }
  const double rms = std::sqrt(ratio / static_cast<double>(n));
  const double rate = options.learning_rate / std::max(1.0, rms);
  for (int64_t i = 0; i < n; ++i) {
    float& w = weight.f32()[i];
    w = static_cast<float>(w - rate * options.weight_decay * w -
                           rate * first_moment.f32()[i] /
                               (std::sqrt(double(second_moment.f32()[i])) + options.eps));
  }
  return rms;
}

// 3. sum of squares
double sum_of_squares(const TensorView& values) {
  double sum = 0;
  for (int64_t i = 0; i < values.elements(); ++i) sum += double(values.f32()[i]) * values.f32()[i];
  return sum;
}

}  // namespace longnet::reference
