// CPU twin of activation.h: rows divided among threads, one row at a time in cache: activation,
// then the norm over it. The norm's rows and partial sums are those of layer_norm_cpu.h.
#include "kernels/activation/activation_cpu.h"

#include <omp.h>

#include <algorithm>

#include "kernels/activation/activation_math.h"
#include "kernels/cast/cast_cpu.h"
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

const float* read(const TensorView& view, int64_t row, float* buffer) {
  return read_row(view, row * view.stride[0], view.shape[1], buffer);
}
float* place(const TensorView& view, int64_t row, float* buffer) {
  return place_of_row(view, row * view.stride[0], buffer);
}
void write(const TensorView& view, int64_t row, const float* buffer) {
  write_row(view, row * view.stride[0], view.shape[1], buffer);
}

int64_t padded(int64_t width) { return (width + 63) / 64 * 64; }

/// Scratch rows of a thread; see activation_workspace_bytes.
int64_t scratch_rows(DType dtype) { return dtype == DType::kBF16 ? 6 : 2; }

/// bf16 if any of the given tensors is.
DType widest_need(std::initializer_list<const TensorView*> views) {
  for (const TensorView* view : views)
    if (view->defined() && view->dtype == DType::kBF16) return DType::kBF16;
  return DType::kF32;
}

}  // namespace

int64_t activation_workspace_bytes(int threads, int64_t ffn_dim, DType dtype) {
  return layer_norm_partial_bytes(threads, ffn_dim) +
         threads * scratch_rows(dtype) * padded(ffn_dim) * static_cast<int64_t>(sizeof(float));
}

void activation_forward(Context& context, const ActivationForward& args, void* workspace) {
  const int64_t rows = args.hidden.shape[0], width = args.hidden.shape[1];
  const bool normed = args.weight.defined();
  const int64_t stride = padded(width);
  const DType dtype = widest_need({&args.out, &args.hidden, &args.gate});
  float* scratch = static_cast<float*>(workspace);  // bf16: [threads][6][width]
#pragma omp parallel for schedule(static) num_threads(context.threads()) if (rows * width > 4096)
  for (int64_t row = 0; row < rows; ++row) {
    float* rows_of_thread = scratch + omp_get_thread_num() * scratch_rows(dtype) * stride;
    float* out = place(args.out, row, rows_of_thread);
    const float* hidden = read(args.hidden, row, rows_of_thread + stride);
    if (args.activation == Activation::kSwiglu)
      swiglu_row(out, hidden, read(args.gate, row, rows_of_thread + 2 * stride), width);
    else
      gelu_row(out, hidden, width);
    if (normed)
      normalise_row(out, args.mean.f32() + row, args.rstd.f32() + row, out, args.weight.f32(),
                    args.bias.f32(), args.eps, width);
    write(args.out, row, out);
  }
}

void activation_backward(Context& context, const ActivationBackward& args, void* workspace) {
  const int64_t rows = args.hidden.shape[0], width = args.hidden.shape[1];
  const bool normed = args.weight.defined();
  const int threads = context.threads();
  const int64_t stride = padded(width);
  float* partials = static_cast<float*>(workspace);  // [threads][2][width]
  float* scratch = partials + threads * 2 * stride;  // [threads][2 or 6][width]
  const DType dtype =
      widest_need({&args.grad_hidden, &args.grad_gate, &args.grad_out, &args.hidden, &args.gate});
  std::fill_n(partials, threads * 2 * stride, 0.0f);
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (rows * width > 4096)
  for (int part = 0; part < threads; ++part) {
    float* partial = partials + part * 2 * stride;
    float* activated = scratch + part * scratch_rows(dtype) * stride;
    float* grad_activated = activated + stride;
    // Float32 rows of bf16 tensors. grad_out's is free once grad_activated is known.
    float* hidden_buffer = grad_activated + stride;
    float* gate_buffer = hidden_buffer + stride;
    float* grad_buffer = gate_buffer + stride;
    float* grad_hidden_buffer = grad_buffer + stride;
    float* grad_gate_buffer = activated;
    for (int64_t row = rows * part / threads; row < rows * (part + 1) / threads; ++row) {
      const float* hidden = read(args.hidden, row, hidden_buffer);
      const float* gate =
          args.activation == Activation::kSwiglu ? read(args.gate, row, gate_buffer) : nullptr;
      const float* grad = read(args.grad_out, row, grad_buffer);
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
      float* grad_hidden = place(args.grad_hidden, row, grad_hidden_buffer);
      if (gate != nullptr) {
        float* grad_gate = place(args.grad_gate, row, grad_gate_buffer);
        swiglu_row_backward(grad_hidden, grad_gate, grad, hidden, gate, width);
        write(args.grad_gate, row, grad_gate);
      } else {
        gelu_row_backward(grad_hidden, grad, hidden, width);
      }
      write(args.grad_hidden, row, grad_hidden);
    }
  }
  if (normed) add_partials(args.grad_weight.f32(), args.grad_bias.f32(), partials, threads, width);
}

}  // namespace longnet::cpu
