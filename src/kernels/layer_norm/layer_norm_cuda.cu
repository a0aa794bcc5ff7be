// CUDA twin of layer_norm.h: one warp per row, in three passes over it (sum, variance, output).
//
// Gradients of weight and bias: fixed parts of the rows are summed column by column, then the parts
// in order; no atomics. They are taken before grad_x is written, which may lie where grad_out lies.
#include "kernels/cuda/simt.h"
#include "kernels/cuda/stream.h"
#include "kernels/layer_norm/layer_norm_cuda.h"

namespace longnet::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRowsPerBlock = kThreads / 32;
constexpr int kParts = 64;  // of the rows, for weight gradients

__device__ __forceinline__ float get(const float* row, int64_t i) { return row[i]; }
__device__ __forceinline__ float get(const uint16_t* row, int64_t i) {
  return bf16_to_float(row[i]);
}
/// Stores and returns what a later read gives.
__device__ __forceinline__ float put(float* row, int64_t i, float x) { return row[i] = x; }
__device__ __forceinline__ float put(uint16_t* row, int64_t i, float x) {
  return bf16_to_float(row[i] = float_to_bf16(x));
}

/// Rows of a [T, G, W] view.
template <typename T>
struct Rows {
  T* data;
  int64_t token, group;  // strides
  __device__ __forceinline__ T* row(int64_t index, int64_t groups) const {
    return data + index / groups * token + index % groups * group;
  }
};

struct Sizes {
  int64_t rows, groups, width;
};

/// sum and residual: data null where not given.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Rows<T> out, Rows<T> sum, float* mean, float* rstd, Rows<T> x, Rows<T> residual,
                   const float* weight, const float* bias, float eps, Sizes n) {
  const int64_t index = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (index >= n.rows) return;
  const T* from = x.row(index, n.groups);
  // 1. s, and its mean. Measured from s[0], a row far from zero keeps its digits.
  float origin = 0, total = 0;
  if (sum.data != nullptr) {
    T* stored = sum.row(index, n.groups);
    const T* added = residual.data != nullptr ? residual.row(index, n.groups) : nullptr;
    for (int64_t i = lane; i - lane < n.width; i += 32) {
      float s = 0;
      if (i < n.width) s = put(stored, i, get(from, i) + (added != nullptr ? get(added, i) : 0.0f));
      if (i == lane) origin = __shfl_sync(kFullWarp, s, 0);
      if (i < n.width) total += s - origin;
    }
    from = stored;
  } else {
    origin = get(from, 0);
    for (int64_t i = lane; i < n.width; i += 32) total += get(from, i) - origin;
  }
  const float middle = origin + warp_sum(total) / static_cast<float>(n.width);
  // 2. variance
  float squares = 0;
  for (int64_t i = lane; i < n.width; i += 32) {
    const float d = get(from, i) - middle;
    squares += d * d;
  }
  const float scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(n.width) + eps);
  // 3. output
  T* to = out.row(index, n.groups);
  for (int64_t i = lane; i < n.width; i += 32)
    put(to, i, (get(from, i) - middle) * scale * weight[i] + bias[i]);
  if (lane == 0) {
    mean[index] = middle;
    rstd[index] = scale;
  }
}

/// Grid: (columns / kThreads, kParts). partials: [kParts, 2, W], weight then bias.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    partial_kernel(float* partials, Rows<T> grad_out, Rows<T> x, const float* mean,
                   const float* rstd, Sizes n) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x, part = blockIdx.y;
  if (column >= n.width) return;
  float grad_weight = 0, grad_bias = 0;
  const int64_t end = n.rows * (part + 1) / kParts;
  for (int64_t row = n.rows * part / kParts; row < end; ++row) {
    const float grad = get(grad_out.row(row, n.groups), column);
    grad_weight += grad * (get(x.row(row, n.groups), column) - mean[row]) * rstd[row];
    grad_bias += grad;
  }
  float* to = partials + (LN_BUG == 30 ? 0 : part) * 2 * n.width;
  to[column] = grad_weight;
  to[n.width + column] = grad_bias;
}

__global__ void __launch_bounds__(kThreads)
    add_partials_kernel(float* grad_weight, float* grad_bias, const float* partials,
                        int64_t width) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= width) return;
  float weight = 0, bias = 0;
  for (int part = 0; part < kParts; ++part) {
    weight += partials[part * 2 * width + column];
    bias += partials[(part * 2 + 1) * width + column];
  }
  grad_weight[column] += weight;
  grad_bias[column] += bias;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    grad_x_kernel(Rows<T> grad_x, Rows<T> grad_out, Rows<T> x, const float* mean, const float* rstd,
                  const float* weight, bool accumulate, Sizes n) {
  const int64_t index = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (index >= n.rows) return;
  const T *grad = grad_out.row(index, n.groups), *from = x.row(index, n.groups);
  const float middle = mean[index], scale = rstd[index];
  // y = n w + b, n = (x - mean) rstd:  dn = dy w,  dx = rstd (dn - avg(dn) - n avg(dn n))
  float sum = 0, dot = 0;
  for (int64_t i = lane; i < n.width; i += 32) {
    const float grad_n = get(grad, i) * weight[i];
    sum += grad_n;
    dot += grad_n * (get(from, i) - middle) * scale;
  }
  sum = warp_sum(sum) / static_cast<float>(n.width);
  dot = warp_sum(dot) / static_cast<float>(n.width);
  T* to = grad_x.row(index, n.groups);
  for (int64_t i = lane; i < n.width; i += 32) {
    const float value =
        scale * (get(grad, i) * weight[i] - sum - (get(from, i) - middle) * scale * dot);
    put(to, i, value + (accumulate ? get(to, i) : 0.0f));
  }
}

template <typename T>
Rows<T> rows_of(const TensorView& view) {
  return {static_cast<T*>(view.data), view.stride[0], view.stride[1]};
}
float* floats(const TensorView& view) { return static_cast<float*>(view.data); }

unsigned blocks(int64_t count, int64_t per_block) {
  const int64_t n = (count + per_block - 1) / per_block;
  LN_CHECK(n <= INT32_MAX, "{} blocks in one launch", n);
  return static_cast<unsigned>(n);
}

template <typename T>
void forward(Context& context, const LayerNormForward& args) {
  const Sizes n{args.x.shape[0] * args.x.shape[1], args.x.shape[1], args.x.shape[2]};
  launch(forward_kernel<T>, blocks(n.rows, kRowsPerBlock), kThreads, 0, context_stream(context),
         rows_of<T>(args.out), rows_of<T>(args.sum), floats(args.mean), floats(args.rstd),
         rows_of<T>(args.x), rows_of<T>(args.residual), floats(args.weight), floats(args.bias),
         args.eps, n);
}

template <typename T>
void backward(Context& context, const LayerNormBackward& args, void* workspace) {
  const Sizes n{args.x.shape[0] * args.x.shape[1], args.x.shape[1], args.x.shape[2]};
  void* stream = context_stream(context);
  float* partials = static_cast<float*>(workspace);
  launch(partial_kernel<T>, dim3(blocks(n.width, kThreads), kParts), kThreads, 0, stream, partials,
         rows_of<T>(args.grad_out), rows_of<T>(args.x), floats(args.mean), floats(args.rstd), n);
  launch(add_partials_kernel, blocks(n.width, kThreads), kThreads, 0, stream,
         floats(args.grad_weight), floats(args.grad_bias), partials, n.width);
  launch(grad_x_kernel<T>, blocks(n.rows, kRowsPerBlock), kThreads, 0, stream,
         rows_of<T>(args.grad_x), rows_of<T>(args.grad_out), rows_of<T>(args.x), floats(args.mean),
         floats(args.rstd), floats(args.weight), args.accumulate, n);
}

/// f with the element type; x and every other row tensor must have it.
template <typename F>
void with_type(std::initializer_list<TensorView> views, F f) {
  DType dtype = views.begin()->dtype;
  for (const TensorView& view : views)
    LN_CHECK(!view.defined() || view.dtype == dtype, "{} beside {}", view.describe(),
             dtype_name(dtype));
  if (dtype == DType::kF32)
    f(float{});
  else if (dtype == DType::kBF16)
    f(uint16_t{});
  else
    throw Error("norm of {}: allowed are f32 and bf16", views.begin()->describe());
}

}  // namespace

int64_t layer_norm_backward_workspace_bytes(const Context&, int64_t width) {
  return kParts * 2 * width * static_cast<int64_t>(sizeof(float));
}

void layer_norm_forward(Context& context, const LayerNormForward& args) {
  if (args.x.elements() == 0) return;
  with_type({args.x, args.out, args.sum, args.residual},
            [&](auto type) { forward<decltype(type)>(context, args); });
}

void layer_norm_backward(Context& context, const LayerNormBackward& args, void* workspace) {
  if (args.x.elements() == 0) return;
  with_type({args.x, args.grad_x, args.grad_out},
            [&](auto type) { backward<decltype(type)>(context, args, workspace); });
}

}  // namespace longnet::cuda
