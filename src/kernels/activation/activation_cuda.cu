// CUDA twin of activation.h. Without a norm: a warp owns 32 packs of 4 elements (8 where all is
// bf16) of a row, one pack a lane. With one: teams of threads own rows, as row_norm.h says, and the
// activation is their source.
//
// Bytes: every tensor is read once and written once; the backward with a norm makes the activation
// twice, its row coming from cache the second time. About 25 instructions an activation. exp and
// 1 / x are the fast ones, 2 eps each, as the CPU's. No shared memory without a norm.
// Deterministic.
#include "kernels/activation/activation_cuda.h"
#include "kernels/activation/activation_math.h"
#include "kernels/cuda/row_norm.h"

namespace longnet::cuda {
namespace {

constexpr int kThreads = 256;

// activation_math.h says what these are.
__device__ __forceinline__ float device_normal_cdf(float x, float* gaussian) {
  const float t = __fdividef(1.0f, 1.0f + 0.33f * 0.70710678118654752f * fabsf(x));
  *gaussian = __expf(-0.5f * x * x);
  const float tail = 0.5f * *gaussian * normal_tail_series(t);
  return x < 0 ? tail : 1.0f - tail;
}
/// exp(-x) above 2^126 would make __fdividef 0 times: x is bounded as in fast_exp.
__device__ __forceinline__ float device_logistic(float x) {
  const float bounded = x < -87.0f ? -87.0f : x;
  return __fdividef(1.0f, 1.0f + __expf(-bounded));
}

/// h and gate at one pack.
template <int kPack>
struct Inputs {
  float h[kPack], gate[kPack] = {};
  __device__ __forceinline__ void read(const Elements& hidden, int64_t hidden_at,
                                       const Elements& gates, int64_t gate_at) {
    load(h, hidden, hidden_at);
    if (gates.data != nullptr) load(gate, gates, gate_at);
  }
  /// a, and with grad_a given dh and dg.
  __device__ __forceinline__ void activate(float (&a)[kPack], bool gated) const {
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      float gaussian;
      a[j] = gated ? gate[j] * device_logistic(gate[j]) * h[j]
                   : h[j] * device_normal_cdf(h[j], &gaussian);
    }
  }
  __device__ __forceinline__ void differentiate(float (&grad_h)[kPack], float (&grad_gate)[kPack],
                                                const float (&grad)[kPack], bool gated) const {
    constexpr float kInverseSqrt2Pi = 0.39894228040143268f;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      if (gated) {
        // a = silu(g) h, silu(g) = g s(g):  dh = da silu(g),  dg = da h s (1 + g (1 - s))
        const float s = device_logistic(gate[j]);
        grad_gate[j] = grad[j] * h[j] * s * (1.0f + gate[j] * (1.0f - s));
        grad_h[j] = grad[j] * gate[j] * s;
      } else {
        // a = h Phi(h):  dh = da (Phi(h) + h phi(h))
        float gaussian;
        const float cdf = device_normal_cdf(h[j], &gaussian);
        grad_h[j] = grad[j] * (cdf + h[j] * gaussian * kInverseSqrt2Pi);
      }
    }
  }
};

/// Rows of a [T, F] view.
struct Matrix {
  Elements memory;
  int64_t stride;
};

/// This thread's pack: row and column; false where there is none.
template <int kPack>
__device__ __forceinline__ bool own_pack(int64_t* row, int64_t* column, int64_t rows,
                                         int64_t width) {
  const int64_t strips = (width + 32 * kPack - 1) / (32 * kPack);
  const int64_t unit = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  *row = unit / strips;
  *column = ((unit - *row * strips) * 32 + threadIdx.x % 32) * kPack;
  return *row < rows && *column < width;
}

template <int kPack>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Matrix out, Matrix hidden, Matrix gate, int64_t rows, int64_t width) {
  int64_t row, column;
  if (!own_pack<kPack>(&row, &column, rows, width)) return;
  Inputs<kPack> in;
  float a[kPack];
  in.read(hidden.memory, row * hidden.stride + column, gate.memory, row * gate.stride + column);
  in.activate(a, gate.memory.data != nullptr);
  store(out.memory, row * out.stride + column, a);
}

template <int kPack>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Matrix grad_hidden, Matrix grad_gate, Matrix grad_out, Matrix hidden,
                    Matrix gate, int64_t rows, int64_t width) {
  int64_t row, column;
  if (!own_pack<kPack>(&row, &column, rows, width)) return;
  const bool gated = gate.memory.data != nullptr;
  Inputs<kPack> in;
  float grad[kPack], grad_h[kPack], grad_g[kPack] = {};
  in.read(hidden.memory, row * hidden.stride + column, gate.memory, row * gate.stride + column);
  load(grad, grad_out.memory, row * grad_out.stride + column);
  in.differentiate(grad_h, grad_g, grad, gated);
  store(grad_hidden.memory, row * grad_hidden.stride + column, grad_h);
  if (gated) store(grad_gate.memory, row * grad_gate.stride + column, grad_g);
}

/// A row of activations, the norm's input.
struct ForwardRow {
  Elements hidden, gate;
  int64_t hidden_row, gate_row;
  template <int kPack>
  __device__ __forceinline__ void first(int64_t column, float (&v)[kPack]) const {
    Inputs<kPack> in;
    in.read(hidden, hidden_row + column, gate, gate_row + column);
    in.activate(v, gate.data != nullptr);
  }
  template <int kPack>
  __device__ __forceinline__ void again(int64_t column, float (&v)[kPack]) const {
    first(column, v);
  }
};

template <int kPack, int kTeam>
__global__ void __launch_bounds__(kNormThreads, 2)
    norm_forward_kernel(Matrix out, float* mean, float* rstd, Matrix hidden, Matrix gate,
                        const float* weight, const float* bias, float eps, int64_t rows,
                        int64_t width) {
  const int64_t wanted = (int64_t{blockIdx.x} * kNormThreads + threadIdx.x) / kTeam;
  const bool active = wanted < rows;
  const int64_t index = active ? wanted : 0;
  const ForwardRow row{hidden.memory, gate.memory, index * hidden.stride, index * gate.stride};
  normalise_row<kPack, kTeam>(mean + index, rstd + index, weight, bias, eps, width, active, row,
                              [&](int64_t column, const float(&v)[kPack]) {
                                store(out.memory, index * out.stride + column, v);
                              });
}

struct BackwardRow {
  Elements grad_hidden, grad_gate, grad_out, hidden, gate;
  int64_t grad_hidden_row, grad_gate_row, grad_out_row, hidden_row, gate_row;
  template <int kPack>
  __device__ __forceinline__ void load(int64_t column, float (&grad)[kPack],
                                       float (&value)[kPack]) const {
    Inputs<kPack> in;
    in.read(hidden, hidden_row + column, gate, gate_row + column);
    cuda::load(grad, grad_out, grad_out_row + column);
    in.activate(value, gate.data != nullptr);
  }
  template <int kPack>
  __device__ __forceinline__ void write(int64_t column, const float (&grad)[kPack]) const {
    Inputs<kPack> in;
    float grad_h[kPack], grad_g[kPack] = {};
    in.read(hidden, hidden_row + column, gate, gate_row + column);
    in.differentiate(grad_h, grad_g, grad, gate.data != nullptr);
    store(grad_hidden, grad_hidden_row + column, grad_h);
    if (gate.data != nullptr) store(grad_gate, grad_gate_row + column, grad_g);
  }
};

template <int kPack, int kTeam>
__global__ void __launch_bounds__(kNormThreads, 2)
    norm_backward_kernel(float* partials, Matrix grad_hidden, Matrix grad_gate, Matrix grad_out,
                         Matrix hidden, Matrix gate, const float* mean, const float* rstd,
                         const float* weight, bool shared_sums, int64_t rows, int64_t width) {
  norm_rows_backward<kPack, kTeam>(partials, mean, rstd, weight, rows, width, shared_sums,
                                   [&](int64_t index) {
                                     return BackwardRow{grad_hidden.memory,
                                                        grad_gate.memory,
                                                        grad_out.memory,
                                                        hidden.memory,
                                                        gate.memory,
                                                        index * grad_hidden.stride,
                                                        index * grad_gate.stride,
                                                        index * grad_out.stride,
                                                        index * hidden.stride,
                                                        index * gate.stride};
                                   });
}

Matrix matrix_of(const TensorView& view) { return {elements_of(view), view.stride[0]}; }
Matrix gate_of(Activation activation, const TensorView& view) {
  return activation == Activation::kSwiglu ? matrix_of(view) : Matrix{{nullptr, false}, 0};
}
float* floats(const TensorView& view) { return static_cast<float*>(view.data); }

}  // namespace

int64_t activation_workspace_bytes(int64_t ffn_dim) { return norm_partial_bytes(ffn_dim); }

void activation_forward(Context& context, const ActivationForward& args, void*) {
  const int64_t rows = args.hidden.shape[0], width = args.hidden.shape[1];
  const Matrix hidden = matrix_of(args.hidden), gate = gate_of(args.activation, args.gate);
  const int pack = pack_of(
      {args.out, args.hidden, args.activation == Activation::kSwiglu ? args.gate : TensorView{}});
  void* stream = context.stream();
  if (!args.weight.defined()) {
    with_pack(pack, [&](auto pack_size) {
      const int64_t strips = (width + 32 * pack_size - 1) / (32 * pack_size);
      launch(forward_kernel<pack_size>, blocks_for(rows * strips, kThreads / 32), kThreads, 0,
             stream, matrix_of(args.out), hidden, gate, rows, width);
    });
    return;
  }
  with_pack(pack_beside(pack, {args.weight, args.bias}), [&](auto pack_size) {
    with_team(width, pack_size, [&](auto team) {
      launch(norm_forward_kernel<pack_size, team>, blocks_for(rows, kNormThreads / team),
             kNormThreads, sizeof(NormSmem), stream, matrix_of(args.out), floats(args.mean),
             floats(args.rstd), hidden, gate, floats(args.weight), floats(args.bias), args.eps,
             rows, width);
    });
  });
}

void activation_backward(Context& context, const ActivationBackward& args, void* workspace) {
  const int64_t rows = args.hidden.shape[0], width = args.hidden.shape[1];
  const bool gated = args.activation == Activation::kSwiglu;
  const Matrix hidden = matrix_of(args.hidden), gate = gate_of(args.activation, args.gate);
  const Matrix grad_hidden = matrix_of(args.grad_hidden);
  const Matrix grad_gate = gate_of(args.activation, args.grad_gate);
  const int pack =
      pack_of({args.grad_hidden, args.grad_out, args.hidden, gated ? args.gate : TensorView{},
               gated ? args.grad_gate : TensorView{}});
  void* stream = context.stream();
  if (!args.weight.defined()) {
    with_pack(pack, [&](auto pack_size) {
      const int64_t strips = (width + 32 * pack_size - 1) / (32 * pack_size);
      launch(backward_kernel<pack_size>, blocks_for(rows * strips, kThreads / 32), kThreads, 0,
             stream, grad_hidden, grad_gate, matrix_of(args.grad_out), hidden, gate, rows, width);
    });
    return;
  }
  float* partials = static_cast<float*>(workspace);
  with_pack(pack_beside(pack, {args.weight}), [&](auto pack_size) {
    with_team(width, pack_size, [&](auto team) {
      const NormBackwardLaunch shape(rows, width, team);
      launch(norm_backward_kernel<pack_size, team>, shape.blocks, kNormThreads, shape.shared_bytes,
             stream, partials, grad_hidden, grad_gate, matrix_of(args.grad_out), hidden, gate,
             floats(args.mean), floats(args.rstd), floats(args.weight), shape.shared_sums, rows,
             width);
      add_norm_partials(context, floats(args.grad_weight), floats(args.grad_bias), partials,
                        shape.blocks, width);
    });
  });
}

}  // namespace longnet::cuda
