// LayerNorm over the last axis, optionally fused with the residual addition before it.
//
//   s = x (+ residual);  y = (s - mean) rstd weight + bias,  rstd = 1 / sqrt(var + eps)
//
// Rows are the first two axes of a [T, G, W] view: G = 1 for whole rows; G = H, W = D for the
// per-head norm of queries and keys, whose rows are strided in the fused QKV buffer. The last axis
// is contiguous. Each [T, G, W] tensor is f32 or bf16, as its view says; weight, bias, mean and
// rstd [T, G] are f32. Sums and arithmetic are float32 or better. If s is stored as bf16, the norm
// uses the stored values.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet {

struct LayerNormForward {
  TensorView out;       // [T, G, W] y
  TensorView sum;       // [T, G, W] s; may be the same memory as x; not defined: s is not stored
  TensorView mean;      // [T, G]
  TensorView rstd;      // [T, G]
  TensorView x;         // [T, G, W]; out may be the same memory
  TensorView residual;  // [T, G, W] or not defined
  TensorView weight;    // [W]
  TensorView bias;      // [W]
  float eps = 1e-5f;
};

struct LayerNormBackward {
  TensorView grad_x;       // [T, G, W]; written, or added to if accumulate
  TensorView grad_weight;  // [W] f32, added to
  TensorView grad_bias;    // [W] f32, added to
  TensorView grad_out;     // [T, G, W]; may be the same memory as grad_x (then not accumulate)
  TensorView x;            // [T, G, W] the normalised input s of the forward
  TensorView mean;         // [T, G]
  TensorView rstd;         // [T, G]
  TensorView weight;       // [W]
  bool accumulate = false;
};

int64_t layer_norm_backward_workspace_bytes(const Context& context, int64_t width);
void layer_norm_forward(Context& context, const LayerNormForward& args);
/// Weight gradients are summed in a fixed order (the same bits for the same number of threads).
void layer_norm_backward(Context& context, const LayerNormBackward& args, void* workspace);

namespace reference {
void layer_norm_forward(const LayerNormForward& args);
void layer_norm_backward(const LayerNormBackward& args);
}  // namespace reference

}  // namespace longnet
