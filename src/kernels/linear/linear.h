// Linear layers: y = x W^T + b, and their gradients. The matrix products are oneDNN's on the CPU
// (_onednn twin) and cuBLASLt's on a GPU (_cublaslt twin), chosen by context.device().
//
// W is [O, I] row-major (PyTorch). Rows of x and y may be strided (last axis contiguous). The two
// operands of a product are both f32 or both bf16 (and a forward's bias with them); the result may
// be f32 or bf16 in either case; sums are float32. Adds 2 T O I FLOPs to Context::work() per
// product. What a library prepares for a shape is kept and reused. Scratch: the library's own on
// the CPU, the caller's on a GPU (Context::set_library_workspace).
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet {

/// Bytes to offer with Context::set_library_workspace(); 0 on the CPU, whose library needs none.
int64_t linear_workspace_bytes(const Context& context);

/// out [T, O] = x [T, I] weight^T (+ bias [O] if defined) (+ out if accumulate).
void linear_forward(Context& context, const TensorView& out, const TensorView& x,
                    const TensorView& weight, const TensorView& bias, bool accumulate = false);
/// grad_x [T, I] = grad_out [T, O] weight (+ grad_x if accumulate).
void linear_backward_input(Context& context, const TensorView& grad_x, const TensorView& grad_out,
                           const TensorView& weight, bool accumulate = false);
/// grad_weight [O, I] += grad_out^T x; grad_bias [O] += column sums (if defined). Both f32.
void linear_backward_weight(Context& context, const TensorView& grad_weight,
                            const TensorView& grad_bias, const TensorView& grad_out,
                            const TensorView& x);

namespace reference {
void linear_forward(const TensorView& out, const TensorView& x, const TensorView& weight,
                    const TensorView& bias, bool accumulate = false);
void linear_backward_input(const TensorView& grad_x, const TensorView& grad_out,
                           const TensorView& weight, bool accumulate = false);
void linear_backward_weight(const TensorView& grad_weight, const TensorView& grad_bias,
                            const TensorView& grad_out, const TensorView& x);
}  // namespace reference

}  // namespace longnet
