// The definition of linear.h in double, one thread. Twin: linear_onednn.cpp.
#include "core/bf16.h"
#include "kernels/linear/linear.h"

namespace longnet::reference {
namespace {

// 1. one element of a matrix
double at(const TensorView& matrix, int64_t row, int64_t column) {
  return element_at(matrix, row * matrix.stride[0] + column);
}
void set(const TensorView& matrix, int64_t row, int64_t column, double value) {
  set_element(matrix, row * matrix.stride[0] + column, value);
}

}  // namespace

// 2. forward
void linear_forward(const TensorView& out, const TensorView& x, const TensorView& weight,
                    const TensorView& bias, bool accumulate) {
  for (int64_t t = 0; t < out.shape[0]; ++t)
    for (int64_t o = 0; o < out.shape[1]; ++o) {
      double sum = accumulate ? at(out, t, o) : 0.0;
      if (bias.defined()) sum += element_at(bias, o);
      for (int64_t i = 0; i < x.shape[1]; ++i) sum += at(x, t, i) * at(weight, o, i);
      set(out, t, o, sum);
    }
}

// 3. backward
void linear_backward_input(const TensorView& grad_x, const TensorView& grad_out,
                           const TensorView& weight, bool accumulate) {
  for (int64_t t = 0; t < grad_x.shape[0]; ++t)
    for (int64_t i = 0; i < grad_x.shape[1]; ++i) {
      double sum = accumulate ? at(grad_x, t, i) : 0.0;
      for (int64_t o = 0; o < grad_out.shape[1]; ++o) sum += at(grad_out, t, o) * at(weight, o, i);
      set(grad_x, t, i, sum);
    }
}

void linear_backward_weight(const TensorView& grad_weight, const TensorView& grad_bias,
                            const TensorView& grad_out, const TensorView& x) {
  for (int64_t o = 0; o < grad_weight.shape[0]; ++o) {
    for (int64_t i = 0; i < grad_weight.shape[1]; ++i) {
      double sum = at(grad_weight, o, i);
      for (int64_t t = 0; t < x.shape[0]; ++t) sum += at(grad_out, t, o) * at(x, t, i);
      set(grad_weight, o, i, sum);
    }
    if (!grad_bias.defined()) continue;
    double sum = grad_bias.f32()[o];
    for (int64_t t = 0; t < x.shape[0]; ++t) sum += at(grad_out, t, o);
    grad_bias.f32()[o] = static_cast<float>(sum);
  }
}

}  // namespace longnet::reference
