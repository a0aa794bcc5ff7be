// Activation of the feed-forward block, fused with the sub-LayerNorm after it where there is one.
//
//   a = gelu(h) (exact, erf)  or  a = silu(gate) h
//   y = a, or with a norm (weight defined): y = LayerNorm(a)
//
// The backward recomputes a from h (and gate), so only h, gate, mean and rstd are kept. Each [T, F]
// tensor is f32 or bf16, as its view says; weight, bias, mean, rstd and all arithmetic are f32.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet {

enum class Activation { kGelu, kSwiglu };

struct ActivationForward {
  TensorView out;     // [T, F]
  TensorView mean;    // [T] f32; only with a norm
  TensorView rstd;    // [T] f32; only with a norm
  TensorView hidden;  // [T, F] h, rows may be strided (fused fc1 | gate output [T, 2 F])
  TensorView gate;    // [T, F], same strides rule; kSwiglu only
  TensorView weight;  // [F] or not defined: no norm
  TensorView bias;    // [F]
  float eps = 1e-5f;
  Activation activation = Activation::kGelu;
};

struct ActivationBackward {
  TensorView grad_hidden;  // [T, F], written; rows may be strided
  TensorView grad_gate;    // [T, F], written; kSwiglu only
  TensorView grad_weight;  // [F] f32, added to; with a norm
  TensorView grad_bias;    // [F] f32, added to; with a norm
  TensorView grad_out;     // [T, F]
  TensorView hidden, gate;
  TensorView mean, rstd;
  TensorView weight;
  Activation activation = Activation::kGelu;
};

/// dtype: bf16 if any [T, F] tensor of the calls is.
int64_t activation_workspace_bytes(const Context& context, int64_t ffn_dim,
                                   DType dtype = DType::kF32);
void activation_forward(Context& context, const ActivationForward& args, void* workspace);
void activation_backward(Context& context, const ActivationBackward& args, void* workspace);

namespace reference {
void activation_forward(const ActivationForward& args);
void activation_backward(const ActivationBackward& args);
}  // namespace reference

}  // namespace longnet
