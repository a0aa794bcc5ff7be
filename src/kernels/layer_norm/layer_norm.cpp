// Dispatcher of layer_norm.h: checks, then the twin of the device.
#include "kernels/layer_norm/layer_norm.h"

#include "core/bf16.h"
#include "kernels/layer_norm/layer_norm_cpu.h"
#include "kernels/layer_norm/layer_norm_cuda.h"

namespace longnet {
namespace {

void check_rows(const TensorView& view, const TensorView& like, const char* name) {
  LN_CHECK(view.rank == 3 && view.shape == like.shape, "{} {} beside {}", name, view.describe(),
           like.describe());
  LN_CHECK(view.stride[2] == 1 || view.shape[2] <= 1, "{} has a strided last axis", name);
  LN_CHECK(is_float_type(view.dtype), "{} is {}, wanted f32 or bf16", name, view.describe());
}

void check_statistic(const TensorView& view, const TensorView& x, const char* name) {
  LN_CHECK(view.elements() == x.shape[0] * x.shape[1] && view.contiguous(), "{} {} for rows of {}",
           name, view.describe(), x.describe());
}

void check_width(const TensorView& view, int64_t width, const char* name) {
  LN_CHECK(view.elements() == width && view.contiguous(), "{} {} for width {}", name,
           view.describe(), width);
  LN_CHECK(view.dtype == DType::kF32, "{} is {}, wanted f32", name, view.describe());
}

}  // namespace

int64_t layer_norm_backward_workspace_bytes(const Context& context, int64_t width) {
  if (context.on_gpu()) return cuda::layer_norm_backward_workspace_bytes(context, width);
  return cpu::layer_norm_partial_bytes(context.threads(), width);
}

void layer_norm_forward(Context& context, const LayerNormForward& args) {
  check_rows(args.out, args.x, "out");
  check_rows(args.x, args.x, "x");
  if (args.residual.defined()) {
    check_rows(args.residual, args.x, "residual");
    LN_CHECK(args.sum.defined(), "a residual needs a place for the sum");
  }
  if (args.sum.defined()) check_rows(args.sum, args.x, "sum");
  check_statistic(args.mean, args.x, "mean");
  check_statistic(args.rstd, args.x, "rstd");
  check_width(args.weight, args.x.shape[2], "weight");
  check_width(args.bias, args.x.shape[2], "bias");
  if (context.counting() || args.x.elements() == 0) return;
  if (context.on_gpu()) return cuda::layer_norm_forward(context, args);
  cpu::layer_norm_forward(context, args);
}

void layer_norm_backward(Context& context, const LayerNormBackward& args, void* workspace) {
  check_rows(args.grad_x, args.x, "grad_x");
  check_rows(args.grad_out, args.x, "grad_out");
  check_rows(args.x, args.x, "x");
  check_statistic(args.mean, args.x, "mean");
  check_statistic(args.rstd, args.x, "rstd");
  check_width(args.weight, args.x.shape[2], "weight");
  check_width(args.grad_weight, args.x.shape[2], "grad_weight");
  check_width(args.grad_bias, args.x.shape[2], "grad_bias");
  LN_CHECK(workspace != nullptr, "no workspace");
  LN_CHECK(!args.accumulate || args.grad_x.data != args.grad_out.data,
           "grad_x cannot be added to where grad_out lies");
  if (context.counting() || args.x.elements() == 0) return;
  if (context.on_gpu()) return cuda::layer_norm_backward(context, args, workspace);
  cpu::layer_norm_backward(context, args, workspace);
}

}  // namespace longnet
