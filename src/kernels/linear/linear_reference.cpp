// The definition of linear.h in double, one thread. Twin: linear_onednn.cpp.
#include "kernels/linear/linear.h"

namespace longnet::reference {
namespace {

// 1. one element of a matrix
float& at(const TensorView& matrix, int64_t row, int64_t column) {
  return matrix.f32()[row * matrix.stride[0] + column];
}

}  // namespace

// 2. forward
void linear_forward(const TensorView& out, const TensorView& x, const TensorView& weight,
                    const TensorView& bias, bool accumulate) {
  for (int64_t t = 0; t < out.shape[0]; ++t)
    for (int64_t o = 0; o < out.shape[1]; ++o) {
      double sum = accumulate ? at(out, t, o) : 0.0;
      if (bias.defined()) sum += bias.f32()[o];
      for (int64_t i = 0; i < x.shape[1]; ++i) sum += double(at(x, t, i)) * at(weight, o, i);
      at(out, t, o) = static_cast<float>(sum);
    }
}

// 3. backward
void linear_backward_input(const TensorView& grad_x, const TensorView& grad_out,
                           const TensorView& weight, bool accumulate) {
  for (int64_t t = 0; t < grad_x.shape[0]; ++t)
    for (int64_t i = 0; i < grad_x.shape[1]; ++i) {
      double sum = accumulate ? at(grad_x, t, i) : 0.0;
      for (int64_t o = 0; o < grad_out.shape[1]; ++o)
        sum += double(at(grad_out, t, o)) * at(weight, o, i);
      at(grad_x, t, i) = static_cast<float>(sum);
    }
}

void linear_backward_weight(const TensorView& grad_weight, const TensorView& grad_bias,
                            const TensorView& grad_out, const TensorView& x) {
  for (int64_t o = 0; o < grad_weight.shape[0]; ++o) {
    for (int64_t i = 0; i < grad_weight.shape[1]; ++i) {
      double sum = at(grad_weight, o, i);
      for (int64_t t = 0; t < x.shape[0]; ++t) sum += double(at(grad_out, t, o)) * at(x, t, i);
      at(grad_weight, o, i) = static_cast<float>(sum);
    }
    if (!grad_bias.defined()) continue;
    double sum = grad_bias.f32()[o];
    for (int64_t t = 0; t < x.shape[0]; ++t) sum += at(grad_out, t, o);
    grad_bias.f32()[o] = static_cast<float>(sum);
  }
}

}  // namespace longnet::reference
