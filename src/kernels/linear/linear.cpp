// Dispatcher of linear.h: checks, FLOPs, and the library-backed twins: linear_onednn.cpp on the
// CPU, linear_cublaslt.cpp on a GPU.
#include "kernels/linear/linear.h"

#include "core/bf16.h"
#include "kernels/linear/linear_cublaslt.h"
#include "kernels/linear/linear_onednn.h"

namespace longnet {
namespace {

void check_matrix(const Context& context, const TensorView& view, const char* name) {
  check_on_device(context, view, name);
  LN_CHECK(view.rank == 2, "{} {} is not a matrix", name, view.describe());
  LN_CHECK(view.stride[1] == 1 || view.shape[1] <= 1, "{} {} has a strided last axis", name,
           view.describe());
  LN_CHECK(is_float_type(view.dtype), "{} is {}, wanted f32 or bf16", name, view.describe());
}

/// The operands of a product.
void check_types(const TensorView& a, const TensorView& b) {
  LN_CHECK(a.dtype == b.dtype, "a product of {} and {}: wanted two of one type", a.describe(),
           b.describe());
}

/// out [T, O], x [T, I], weight [O, I] belong together.
void check_shapes(const Context& context, const TensorView& out, const TensorView& x,
                  const TensorView& weight) {
  check_matrix(context, out, "output");
  check_matrix(context, x, "input");
  check_matrix(context, weight, "weight");
  LN_CHECK(out.shape[0] == x.shape[0] && out.shape[1] == weight.shape[0] &&
               x.shape[1] == weight.shape[1],
           "out {}, x {}, weight {}", out.describe(), x.describe(), weight.describe());
}

bool count(Context& context, int64_t rows, int64_t out, int64_t in) {
  context.work().matmul_flops += 2.0 * static_cast<double>(rows) * out * in;
  return context.counting() || rows == 0;
}

}  // namespace

int64_t linear_workspace_bytes(const Context& context) {
  return context.on_gpu() ? cublaslt::workspace_bytes() : 0;
}

void linear_forward(Context& context, const TensorView& out, const TensorView& x,
                    const TensorView& weight, const TensorView& bias, bool accumulate) {
  check_shapes(context, out, x, weight);
  check_types(x, weight);
  check_on_device(context, bias, "bias");
  LN_CHECK(!bias.defined() || (bias.elements() == weight.shape[0] && bias.dtype == weight.dtype),
           "bias {} for weight {}", bias.describe(), weight.describe());
  if (count(context, x.shape[0], weight.shape[0], weight.shape[1])) return;
  if (context.on_gpu()) return cublaslt::linear_forward(context, out, x, weight, bias, accumulate);
  onednn::linear_forward(context, out, x, weight, bias, accumulate);
}

void linear_backward_input(Context& context, const TensorView& grad_x, const TensorView& grad_out,
                           const TensorView& weight, bool accumulate) {
  check_shapes(context, grad_out, grad_x, weight);
  check_types(grad_out, weight);
  if (count(context, grad_x.shape[0], weight.shape[0], weight.shape[1])) return;
  if (context.on_gpu())
    return cublaslt::linear_backward_input(context, grad_x, grad_out, weight, accumulate);
  onednn::linear_backward_input(context, grad_x, grad_out, weight, accumulate);
}

void linear_backward_weight(Context& context, const TensorView& grad_weight,
                            const TensorView& grad_bias, const TensorView& grad_out,
                            const TensorView& x) {
  check_shapes(context, grad_out, x, grad_weight);
  check_on_device(context, grad_bias, "grad_bias");
  check_types(grad_out, x);
  LN_CHECK(
      grad_weight.dtype == DType::kF32 && (!grad_bias.defined() || grad_bias.dtype == DType::kF32),
      "grad_weight {}, grad_bias {}: sums over tokens are f32", grad_weight.describe(),
      grad_bias.describe());
  LN_CHECK(!grad_bias.defined() || grad_bias.elements() == grad_weight.shape[0],
           "grad_bias {} for grad_weight {}", grad_bias.describe(), grad_weight.describe());
  if (count(context, x.shape[0], grad_weight.shape[0], grad_weight.shape[1])) return;
  if (context.on_gpu())
    return cublaslt::linear_backward_weight(context, grad_weight, grad_bias, grad_out, x);
  onednn::linear_backward_weight(context, grad_weight, grad_bias, grad_out, x);
}

}  // namespace longnet
