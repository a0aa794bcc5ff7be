// CPU twin of activation.h: rows divided among threads, one row at a time in cache: activation,
// then the norm over it. The norm's rows and partial sums are those of layer_norm_cpu.h.
#include "kernels/activation/activation_cpu.h"

#include <algorithm>

#include "kernels/activation/activation_math.h"
#include "kernels/layer_norm/layer_norm_cpu.h"

namespace longnet::cpu {
namespace {

LN_CLONES void gelu_row(float* out, const float* hidden, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) out[i] = gelu(hidden[i]);
}

LN_CLONES void swiglu_row(float* out, const float* hidden, const float* gate, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) out[i] = gate[i] * logistic(gate[i]) * hidden[i];
}

LN_CLONES void gelu_row_backward(float* grad_hidden, const float* grad, const float* hidden,
                                 int64_t width) {
  // a = gelu(h):  dh = da gelu'(h)
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) grad_hidden[i] = grad[i] * gelu_derivative(hidden[i]);
}

LN_CLONES void swiglu_row_backward(float* grad_hidden, float* grad_gate, const float* grad,
                                   const float* hidden, const float* gate, int64_t width) {
  // a = silu(g) h, silu(g) = g s(g):  dh = da silu(g),  dg = da h s (1 + g (1 - s))
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const float s = logistic(gate[i]), da = grad[i];
    grad_gate[i] = da * hidden[i] * s * (1.0f + gate[i] * (1.0f - s));
    grad_hidden[i] = da * gate[i] * s;
  }
}

float* row_of(const TensorView& view, int64_t row) { return view.f32() + row * view.stride[0]; }

int64_t padded(int64_t width) { return (width + 63) / 64 * 64; }

}  // namespace

int64_t activation_workspace_bytes(int threads, int64_t ffn_dim) {
  return layer_norm_partial_bytes(threads, ffn_dim) +
         threads * 2 * padded(ffn_dim) * static_cast<int64_t>(sizeof(float));
}

void activation_forward(Context& context, const ActivationForward& args) {
  const int64_t rows = args.hidden.shape[0], width = args.hidden.shape[1];
  const bool normed = args.weight.defined();
#pragma omp parallel for schedule(static) num_threads(context.threads()) if (rows * width > 4096)
  for (int64_t row = 0; row < rows; ++row) {
    float* out = row_of(args.out, row);
    if (args.activation == Activation::kSwiglu)
      swiglu_row(out, row_of(args.hidden, row), row_of(args.gate, row), width);
    else
      gelu_row(out, row_of(args.hidden, row), width);
    if (normed)
      normalise_row(out, args.mean.f32() + row, args.rstd.f32() + row, out, args.weight.f32(),
                    args.bias.f32(), args.eps, width);
  }
}

void activation_backward(Context& context, const ActivationBackward& args, void* workspace) {
  const int64_t rows = args.hidden.shape[0], width = args.hidden.shape[1];
  const bool normed = args.weight.defined();
  const int threads = context.threads();
  const int64_t stride = padded(width);
  float* partials = static_cast<float*>(workspace);  // [threads][2][width]
  float* scratch = partials + threads * 2 * stride;  // [threads][2][width]
  std::fill_n(partials, threads * 2 * stride, 0.0f);
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (rows * width > 4096)
  for (int part = 0; part < threads; ++part) {
    float* partial = partials + part * 2 * stride;
    float* activated = scratch + part * 2 * stride;
    float* grad_activated = activated + stride;
    for (int64_t row = rows * part / threads; row < rows * (part + 1) / threads; ++row) {
      const float* hidden = row_of(args.hidden, row);
      const float* gate = args.activation == Activation::kSwiglu ? row_of(args.gate, row) : nullptr;
      const float* grad = row_of(args.grad_out, row);
      if (normed) {
        // y = LayerNorm(a): a is computed again rather than kept
        if (gate != nullptr)
          swiglu_row(activated, hidden, gate, width);
        else
          gelu_row(activated, hidden, width);
        normalise_row_backward(grad_activated, partial, partial + stride, grad, activated,
                               args.weight.f32(), args.mean.f32()[row], args.rstd.f32()[row], false,
                               width);
        grad = grad_activated;
      }
      if (gate != nullptr)
        swiglu_row_backward(row_of(args.grad_hidden, row), row_of(args.grad_gate, row), grad,
                            hidden, gate, width);
      else
        gelu_row_backward(row_of(args.grad_hidden, row), grad, hidden, width);
    }
  }
  if (normed) add_partials(args.grad_weight.f32(), args.grad_bias.f32(), partials, threads, width);
}

}  // namespace longnet::cpu
