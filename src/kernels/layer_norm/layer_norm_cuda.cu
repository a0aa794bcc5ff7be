// CUDA twin of layer_norm.h: teams of threads own rows, as row_norm.h says; any mix of f32 and
// bf16.
//
// Bytes: every tensor is read once and written once (rows wider than a team's registers or cache
// are read again from the second-level cache). Backward: a block reads its rows' grad_out before it
// writes their grad_x at the same places, thread by thread, so the two may be the same memory.
// Deterministic: every sum has one order, the same on every GPU; no atomics.
#include "kernels/cuda/row_norm.h"
#include "kernels/layer_norm/layer_norm_cuda.h"

namespace longnet::cuda {
namespace {

/// Rows of a [T, G, W] view.
struct Rows {
  Elements memory;
  int64_t token, group;  // strides
  __device__ __forceinline__ int64_t row(int64_t index, int64_t groups) const {
    return index / groups * token + index % groups * group;
  }
};

struct Sizes {
  int64_t rows, groups, width;
};

struct ForwardRow {
  Rows x, residual, sum;  // residual, sum: memory null where not given
  int64_t x_row, residual_row, sum_row;

  template <int kPack>
  __device__ __forceinline__ void first(int64_t column, float (&v)[kPack]) const {
    load(v, x.memory, x_row + column);
    if (sum.memory.data == nullptr) return;
    if (residual.memory.data != nullptr) {
      float added[kPack];
      load(added, residual.memory, residual_row + column);
      for (int j = 0; j < kPack; ++j) v[j] += added[j];
    }
    round_as(sum.memory, v);
    store(sum.memory, sum_row + column, v);
  }
  template <int kPack>
  __device__ __forceinline__ void again(int64_t column, float (&v)[kPack]) const {
    if (sum.memory.data != nullptr)
      load(v, sum.memory, sum_row + column);
    else
      load(v, x.memory, x_row + column);
  }
};

template <int kPack, int kTeam>
__global__ void __launch_bounds__(kNormThreads, 2)
    forward_kernel(Rows out, Rows sum, float* mean, float* rstd, Rows x, Rows residual,
                   const float* weight, const float* bias, float eps, Sizes n) {
  const int64_t wanted = (int64_t{blockIdx.x} * kNormThreads + threadIdx.x) / kTeam;
  const bool active = wanted < n.rows;
  const int64_t index = active ? wanted : 0;
  const ForwardRow row{x,
                       residual,
                       sum,
                       x.row(index, n.groups),
                       residual.row(index, n.groups),
                       sum.row(index, n.groups)};
  const int64_t out_row = out.row(index, n.groups);
  normalise_row<kPack, kTeam>(
      mean + index, rstd + index, weight, bias, eps, n.width, active, row,
      [&](int64_t column, const float(&v)[kPack]) { store(out.memory, out_row + column, v); });
}

struct BackwardRow {
  Elements grad_x, grad_out, x;
  int64_t grad_x_row, grad_out_row, x_row;
  bool accumulate;

  template <int kPack>
  __device__ __forceinline__ void load(int64_t column, float (&grad)[kPack],
                                       float (&value)[kPack]) const {
    cuda::load(grad, grad_out, grad_out_row + column);
    cuda::load(value, x, x_row + column);
  }
  template <int kPack>
  __device__ __forceinline__ void write(int64_t column, float (&v)[kPack]) const {
    if (accumulate) {
      float before[kPack];
      cuda::load(before, grad_x, grad_x_row + column);
      for (int j = 0; j < kPack; ++j) v[j] += before[j];
    }
    store(grad_x, grad_x_row + column, v);
  }
};

template <int kPack, int kTeam>
__global__ void __launch_bounds__(kNormThreads, 2)
    backward_kernel(float* partials, Rows grad_x, Rows grad_out, Rows x, const float* mean,
                    const float* rstd, const float* weight, bool accumulate, bool shared_sums,
                    Sizes n) {
  norm_rows_backward<kPack, kTeam>(partials, mean, rstd, weight, n.rows, n.width, shared_sums,
                                   [&](int64_t index) {
                                     return BackwardRow{grad_x.memory,
                                                        grad_out.memory,
                                                        x.memory,
                                                        grad_x.row(index, n.groups),
                                                        grad_out.row(index, n.groups),
                                                        x.row(index, n.groups),
                                                        accumulate};
                                   });
}

Rows rows_of(const TensorView& view) { return {elements_of(view), view.stride[0], view.stride[1]}; }
float* floats(const TensorView& view) { return static_cast<float*>(view.data); }

}  // namespace

int64_t layer_norm_backward_workspace_bytes(const Context&, int64_t width) {
  return norm_partial_bytes(width);
}

void layer_norm_forward(Context& context, const LayerNormForward& args) {
  const Sizes n{args.x.shape[0] * args.x.shape[1], args.x.shape[1], args.x.shape[2]};
  const int pack = pack_of({args.x, args.residual, args.sum, args.out});
  with_pack(pack_beside(pack, {args.weight, args.bias}), [&](auto pack_size) {
    with_team(n.width, pack_size, [&](auto team) {
      launch(forward_kernel<pack_size, team>, blocks_for(n.rows, kNormThreads / team), kNormThreads,
             sizeof(NormSmem), context.stream(), rows_of(args.out), rows_of(args.sum),
             floats(args.mean), floats(args.rstd), rows_of(args.x), rows_of(args.residual),
             floats(args.weight), floats(args.bias), args.eps, n);
    });
  });
}

void layer_norm_backward(Context& context, const LayerNormBackward& args, void* workspace) {
  const Sizes n{args.x.shape[0] * args.x.shape[1], args.x.shape[1], args.x.shape[2]};
  float* partials = static_cast<float*>(workspace);
  const int pack = pack_of({args.x, args.grad_out, args.grad_x});
  with_pack(pack_beside(pack, {args.weight}), [&](auto pack_size) {
    with_team(n.width, pack_size, [&](auto team) {
      const NormBackwardLaunch shape(n.rows, n.width, team);
      launch(backward_kernel<pack_size, team>, shape.blocks, kNormThreads, shape.shared_bytes,
             context.stream(), partials, rows_of(args.grad_x), rows_of(args.grad_out),
             rows_of(args.x), floats(args.mean), floats(args.rstd), floats(args.weight),
             args.accumulate, shape.shared_sums, n);
      add_norm_partials(context, floats(args.grad_weight), floats(args.grad_bias), partials,
                        shape.blocks, n.width);
    });
  });
}

}  // namespace longnet::cuda
