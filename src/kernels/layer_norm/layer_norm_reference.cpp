// The definition of layer_norm.h in double, one thread. Twin: layer_norm_cpu.cpp.
#include <cmath>
#include <vector>

#include "core/bf16.h"
#include "kernels/layer_norm/layer_norm.h"

namespace longnet::reference {
namespace {

// 1. elements of a [T, G, W] view
double at(const TensorView& view, int64_t t, int64_t g, int64_t i) {
  return element_at(view, t * view.stride[0] + g * view.stride[1] + i);
}
void set(const TensorView& view, int64_t t, int64_t g, int64_t i, double value) {
  set_element(view, t * view.stride[0] + g * view.stride[1] + i, value);
}

}  // namespace

// 2. forward
void layer_norm_forward(const LayerNormForward& args) {
  const int64_t width = args.x.shape[2];
  for (int64_t t = 0; t < args.x.shape[0]; ++t)
    for (int64_t g = 0; g < args.x.shape[1]; ++g) {
      std::vector<double> s(width);
      double mean = 0, variance = 0;
      for (int64_t i = 0; i < width; ++i) {
        // The sum is kept in float32, or as it is stored: the norm is of that.
        float value = static_cast<float>(at(args.x, t, g, i));
        if (args.residual.defined()) value += static_cast<float>(at(args.residual, t, g, i));
        if (args.sum.defined()) set(args.sum, t, g, i, value);
        s[i] = args.sum.defined() ? at(args.sum, t, g, i) : value;
        mean += s[i];
      }
      mean /= width;
      for (double v : s) variance += (v - mean) * (v - mean);
      const double rstd = 1.0 / std::sqrt(variance / width + args.eps);
      args.mean.f32()[t * args.x.shape[1] + g] = static_cast<float>(mean);
      args.rstd.f32()[t * args.x.shape[1] + g] = static_cast<float>(rstd);
      for (int64_t i = 0; i < width; ++i) {
        set(args.out, t, g, i, (s[i] - mean) * rstd * args.weight.f32()[i] + args.bias.f32()[i]);
      }
    }
}

// 3. backward
void layer_norm_backward(const LayerNormBackward& args) {
  const int64_t width = args.x.shape[2];
  std::vector<double> grad_weight(width), grad_bias(width);
  for (int64_t t = 0; t < args.x.shape[0]; ++t)
    for (int64_t g = 0; g < args.x.shape[1]; ++g) {
      const double mean = args.mean.f32()[t * args.x.shape[1] + g];
      const double rstd = args.rstd.f32()[t * args.x.shape[1] + g];
      std::vector<double> grad_n(width);
      double sum = 0, dot = 0;
      for (int64_t i = 0; i < width; ++i) {
        // y = n w + b, n = (x - mean) rstd
        const double grad = at(args.grad_out, t, g, i), n = (at(args.x, t, g, i) - mean) * rstd;
        grad_weight[i] += grad * n;
        grad_bias[i] += grad;
        grad_n[i] = grad * args.weight.f32()[i];
        sum += grad_n[i] / width;
        dot += grad_n[i] * n / width;
      }
      for (int64_t i = 0; i < width; ++i) {
        const double n = (at(args.x, t, g, i) - mean) * rstd;
        const double grad_x = rstd * (grad_n[i] - sum - n * dot);
        set(args.grad_x, t, g, i, grad_x + (args.accumulate ? at(args.grad_x, t, g, i) : 0.0));
      }
    }
  for (int64_t i = 0; i < width; ++i) {
    args.grad_weight.f32()[i] += static_cast<float>(grad_weight[i]);
    args.grad_bias.f32()[i] += static_cast<float>(grad_bias[i]);
  }
}

}  // namespace longnet::reference
