// The definition of activation.h in double, one thread. Twin: activation_cpu.cpp.
#include <cmath>
#include <vector>

#include "core/bf16.h"
#include "kernels/activation/activation.h"

namespace longnet::reference {
namespace {

// 1. the activation of one element and its derivatives
double cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double density(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2.0 * M_PI); }
double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double element(const TensorView& view, int64_t row, int64_t i) {
  return element_at(view, row * view.stride[0] + i);
}
void set(const TensorView& view, int64_t row, int64_t i, double value) {
  set_element(view, row * view.stride[0] + i, value);
}

double activate(Activation activation, const TensorView& hidden, const TensorView& gate,
                int64_t row, int64_t i) {
  const double h = element(hidden, row, i);
  if (activation == Activation::kGelu) return h * cdf(h);
  const double g = element(gate, row, i);
  return g * sigmoid(g) * h;
}

}  // namespace

// 2. forward
void activation_forward(const ActivationForward& args) {
  const int64_t width = args.hidden.shape[1];
  for (int64_t row = 0; row < args.hidden.shape[0]; ++row) {
    std::vector<double> a(width);
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < width; ++i) {
      a[i] = activate(args.activation, args.hidden, args.gate, row, i);
      mean += a[i] / width;
    }
    for (double v : a) variance += (v - mean) * (v - mean) / width;
    const double rstd = 1.0 / std::sqrt(variance + args.eps);
    if (args.weight.defined()) {
      args.mean.f32()[row] = static_cast<float>(mean);
      args.rstd.f32()[row] = static_cast<float>(rstd);
    }
    for (int64_t i = 0; i < width; ++i) {
      const double y = args.weight.defined()
                           ? (a[i] - mean) * rstd * args.weight.f32()[i] + args.bias.f32()[i]
                           : a[i];
      set(args.out, row, i, y);
    }
  }
}

// 3. backward
void activation_backward(const ActivationBackward& args) {
  const int64_t width = args.hidden.shape[1];
  std::vector<double> grad_weight(width), grad_bias(width);
  for (int64_t row = 0; row < args.hidden.shape[0]; ++row) {
    std::vector<double> grad_a(width);
    if (args.weight.defined()) {
      // y = n w + b, n = (a - mean) rstd
      const double mean = args.mean.f32()[row], rstd = args.rstd.f32()[row];
      std::vector<double> n(width);
      double sum = 0, dot = 0;
      for (int64_t i = 0; i < width; ++i) {
        n[i] = (activate(args.activation, args.hidden, args.gate, row, i) - mean) * rstd;
        const double grad = element(args.grad_out, row, i);
        grad_weight[i] += grad * n[i];
        grad_bias[i] += grad;
        sum += grad * args.weight.f32()[i] / width;
        dot += grad * args.weight.f32()[i] * n[i] / width;
      }
      for (int64_t i = 0; i < width; ++i)
        grad_a[i] =
            rstd * (element(args.grad_out, row, i) * args.weight.f32()[i] - sum - n[i] * dot);
    } else {
      for (int64_t i = 0; i < width; ++i) grad_a[i] = element(args.grad_out, row, i);
    }
    for (int64_t i = 0; i < width; ++i) {
      const double h = element(args.hidden, row, i);
      if (args.activation == Activation::kGelu) {
        // a = h Phi(h)
        set(args.grad_hidden, row, i, grad_a[i] * (cdf(h) + h * density(h)));
        continue;
      }
      // a = silu(g) h, silu(g) = g s(g)
      const double g = element(args.gate, row, i), s = sigmoid(g);
      set(args.grad_hidden, row, i, grad_a[i] * g * s);
      set(args.grad_gate, row, i, grad_a[i] * h * s * (1.0 + g * (1.0 - s)));
    }
  }
  if (!args.weight.defined()) return;
  for (int64_t i = 0; i < width; ++i) {
    args.grad_weight.f32()[i] += static_cast<float>(grad_weight[i]);
    args.grad_bias.f32()[i] += static_cast<float>(grad_bias[i]);
  }
}

}  // namespace longnet::reference
