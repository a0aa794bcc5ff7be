// Dispatcher of activation.h: checks, then the twin of the device.
#include "kernels/activation/activation.h"

#include "core/bf16.h"
#include "kernels/activation/activation_cpu.h"
#include "kernels/activation/activation_cuda.h"

namespace longnet {
namespace {

void check_rows(const TensorView& view, const TensorView& like, const char* name) {
  LN_CHECK(view.rank == 2 && view.shape == like.shape, "{} {} beside {}", name, view.describe(),
           like.describe());
  LN_CHECK(view.stride[1] == 1 || view.shape[1] <= 1, "{} has a strided last axis", name);
  LN_CHECK(is_float_type(view.dtype), "{} is {}, wanted f32 or bf16", name, view.describe());
}

void check_length(const TensorView& view, int64_t length, const char* name) {
  LN_CHECK(view.defined() && view.elements() == length && view.contiguous(), "{} {}, wanted {}",
           name, view.describe(), length);
}

}  // namespace

int64_t activation_workspace_bytes(const Context& context, int64_t ffn_dim, DType dtype) {
  if (context.device().type == DeviceType::kCUDA) return cuda::activation_workspace_bytes(ffn_dim);
  return cpu::activation_workspace_bytes(context.threads(), ffn_dim, dtype);
}

void activation_forward(Context& context, const ActivationForward& args, void* workspace) {
  check_rows(args.out, args.hidden, "out");
  check_rows(args.hidden, args.hidden, "hidden");
  if (args.activation == Activation::kSwiglu) check_rows(args.gate, args.hidden, "gate");
  if (args.weight.defined()) {
    check_length(args.weight, args.hidden.shape[1], "weight");
    check_length(args.bias, args.hidden.shape[1], "bias");
    check_length(args.mean, args.hidden.shape[0], "mean");
    check_length(args.rstd, args.hidden.shape[0], "rstd");
  }
  LN_CHECK(workspace != nullptr, "no workspace");
  if (context.counting() || args.hidden.elements() == 0) return;
  if (context.device().type == DeviceType::kCUDA)
    return cuda::activation_forward(context, args, workspace);
  cpu::activation_forward(context, args, workspace);
}

void activation_backward(Context& context, const ActivationBackward& args, void* workspace) {
  check_rows(args.grad_hidden, args.hidden, "grad_hidden");
  check_rows(args.grad_out, args.hidden, "grad_out");
  check_rows(args.hidden, args.hidden, "hidden");
  if (args.activation == Activation::kSwiglu) {
    check_rows(args.gate, args.hidden, "gate");
    check_rows(args.grad_gate, args.hidden, "grad_gate");
  }
  if (args.weight.defined()) {
    check_length(args.weight, args.hidden.shape[1], "weight");
    check_length(args.grad_weight, args.hidden.shape[1], "grad_weight");
    check_length(args.grad_bias, args.hidden.shape[1], "grad_bias");
    check_length(args.mean, args.hidden.shape[0], "mean");
    check_length(args.rstd, args.hidden.shape[0], "rstd");
  }
  LN_CHECK(workspace != nullptr, "no workspace");
  if (context.counting() || args.hidden.elements() == 0) return;
  if (context.device().type == DeviceType::kCUDA)
    return cuda::activation_backward(context, args, workspace);
  cpu::activation_backward(context, args, workspace);
}

}  // namespace longnet
