// CUDA twin of optimizer.h. Updates: a thread owns a pack of 4 elements in strides of the grid;
// AdamW moves 28 bytes an element, StableAdamW 12 and then 24. Sums: a block owns one block of
// 16384 elements, half a warp a cell of 64 of them (4 a lane, added in order, then a tree in
// double); the cells are added in order by one thread, or are terms themselves. The host adds the
// terms, so a sum has the same bits whoever holds its parts. Shared memory 2 KiB. Deterministic; no
// atomics.
#include "core/context.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/warp.h"
#include "kernels/optimizer/optimizer_cuda.h"

namespace longnet::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCells = kSumBlock / kSumCell;

// Fused multiply-adds are written out: how the compiler contracts them depends on what stands
// around them, and an element's bits must not depend on the pack it lies in.

/// beta2 v + (1 - beta2) grad^2.
__device__ __forceinline__ float decayed_square(float v, float grad, const AdamWFactors& f) {
  return fmaf(f.beta2, v, (1.0f - f.beta2) * grad * grad);
}
/// decay w - rate m / (sqrt(v correction) + eps), root: the square root.
__device__ __forceinline__ float updated(float w, float m, float root, const AdamWFactors& f) {
  return fmaf(-f.rate, m / (root + f.eps), w * f.decay);
}

/// kAdamW: with the second moment and its correction; else StableAdamW's second pass.
template <int kPack, bool kAdamW>
__global__ void __launch_bounds__(kThreads)
    update_kernel(float* weight, float* first_moment, float* second_moment, const float* gradient,
                  int64_t packs, AdamWFactors f) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < packs;
       i += int64_t{gridDim.x} * kThreads) {
    float w[kPack], m[kPack], v[kPack], g[kPack];
    load(w, {weight, false}, i * kPack);
    load(m, {first_moment, false}, i * kPack);
    load(v, {second_moment, false}, i * kPack);
    load(g, {const_cast<float*>(gradient), false}, i * kPack);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float grad = g[j] * f.gradient_scale;
      m[j] = fmaf(f.beta1, m[j], (1.0f - f.beta1) * grad);
      if (kAdamW) v[j] = decayed_square(v[j], grad, f);
      const float root = sqrtf(kAdamW ? v[j] * f.inverse_correction2 : v[j]);
      w[j] = updated(w[j], m[j], root, f);
    }
    store({weight, false}, i * kPack, w);
    store({first_moment, false}, i * kPack, m);
    if (kAdamW) store({second_moment, false}, i * kPack, v);
  }
}

/// One element's part of a sum.
struct Square {
  const float* values;
  __device__ __forceinline__ double at(int64_t i) const {
    return static_cast<double>(values[i]) * values[i];
  }
  __device__ __forceinline__ void at4(int64_t i, double (&x)[4]) const {
    float v[4];
    load(v, {const_cast<float*>(values), false}, i);
    for (int j = 0; j < 4; ++j) x[j] = static_cast<double>(v[j]) * v[j];
  }
};
struct SecondMoment {
  float* second_moment;
  const float* gradient;
  AdamWFactors f;
  __device__ __forceinline__ double of(float& v, float g) const {
    const float floor = f.eps * f.eps, grad = g * f.gradient_scale;
    v = decayed_square(v, grad, f);
    return grad * grad / (v > floor ? v : floor);
  }
  __device__ __forceinline__ double at(int64_t i) const {
    return of(second_moment[i], gradient[i]);
  }
  __device__ __forceinline__ void at4(int64_t i, double (&x)[4]) const {
    float v[4], g[4];
    load(v, {second_moment, false}, i);
    load(g, {const_cast<float*>(gradient), false}, i);
    for (int j = 0; j < 4; ++j) x[j] = of(v[j], g[j]);
    store({second_moment, false}, i, v);
  }
};

struct TermsSmem {
  double cell[kCells];
};

/// Grid: the part's blocks. aligned: places of the flat buffer that are multiples of 4 lie on 16
/// bytes.
template <typename Value>
__global__ void __launch_bounds__(kThreads)
    terms_kernel(double* terms, Value value, SumRange whole, SumRange part, bool aligned) {
  auto& sm = shared<TermsSmem>();
  const int64_t first = part.begin / kSumBlock, b = first + blockIdx.x;
  const BlockPart block = block_part(whole, part, b);
  const int lane = threadIdx.x % 16;
  for (int cell = threadIdx.x / 16; cell < kCells; cell += kThreads / 16) {
    const int64_t at = b * kSumBlock + cell * kSumCell + lane * 4;  // place in the flat buffer
    double x[4] = {0, 0, 0, 0};
    if (aligned && at >= block.range.begin && at + 4 <= block.range.end) {
      value.at4(at - part.begin, x);
    } else {
      for (int j = 0; j < 4; ++j)
        if (at + j >= block.range.begin && at + j < block.range.end)
          x[j] = value.at(at + j - part.begin);
    }
    double sum = (x[0] + x[1]) + (x[2] + x[3]);
    for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
    if (lane == 0) sm.cell[cell] = sum;
  }
  __syncthreads();
  const int64_t before = b == first ? 0 : block_part(whole, part, first).terms() + b - first - 1;
  // The block's cells that the part has.
  const int begin = static_cast<int>(block.range.begin / kSumCell - b * kCells);
  const int end = static_cast<int>((block.range.end - 1) / kSumCell - b * kCells) + 1;
  if (block.whole) {
    if (threadIdx.x != 0) return;
    double sum = 0;
    for (int i = begin; i < end; ++i) sum += sm.cell[i];
    terms[before] = sum;
  } else {
    for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kThreads)
      terms[before + i - begin] = sm.cell[i];
  }
}

template <typename Value>
void start_terms(Context& context, double* terms, const Value& value,
                 std::initializer_list<const float*> memory, const SumRange& whole,
                 const SumRange& part, void* workspace) {
  const int64_t count = sum_term_count(whole, part);
  if (count == 0) return;
  bool aligned = true;
  for (const float* p : memory)
    aligned = aligned && (reinterpret_cast<uintptr_t>(p) -
                          static_cast<uintptr_t>(part.begin) * sizeof(float)) %
                                 16 ==
                             0;
  const int64_t blocks = (part.end - 1) / kSumBlock - part.begin / kSumBlock + 1;
  launch(terms_kernel<Value>, blocks_for(blocks, 1), kThreads, sizeof(TermsSmem), context.stream(),
         static_cast<double*>(workspace), value, whole, part, aligned);
  context.wait();  // with progress: the copy would not hear of a collective that fails
  copy_to_host(terms, workspace, static_cast<size_t>(count) * sizeof(double), context.stream());
}

template <bool kAdamW>
void update(Context& context, float* weight, float* first_moment, float* second_moment,
            const float* gradient, int64_t n, const AdamWFactors& factors) {
  bool aligned = true;
  for (const float* p : {static_cast<const float*>(weight), static_cast<const float*>(first_moment),
                         static_cast<const float*>(second_moment), gradient})
    aligned = aligned && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  const int64_t whole = aligned ? n / 4 * 4 : 0;
  void* stream = context.stream();
  if (whole > 0)
    launch(update_kernel<4, kAdamW>, grid_stride_blocks(whole / 4, kThreads), kThreads, 0, stream,
           weight, first_moment, second_moment, gradient, whole / 4, factors);
  if (whole < n)
    launch(update_kernel<1, kAdamW>, grid_stride_blocks(n - whole, kThreads), kThreads, 0, stream,
           weight + whole, first_moment + whole, second_moment + whole, gradient + whole, n - whole,
           factors);
}

}  // namespace

void adamw_update(Context& context, float* weight, float* first_moment, float* second_moment,
                  const float* gradient, int64_t n, const AdamWFactors& factors) {
  update<true>(context, weight, first_moment, second_moment, gradient, n, factors);
}

void stable_apply(Context& context, float* weight, float* first_moment, const float* second_moment,
                  const float* gradient, int64_t n, const AdamWFactors& factors) {
  update<false>(context, weight, first_moment, const_cast<float*>(second_moment), gradient, n,
                factors);
}

void stable_terms(Context& context, double* terms, float* second_moment, const float* gradient,
                  const AdamWFactors& factors, const SumRange& whole, const SumRange& part,
                  void* workspace) {
  start_terms(context, terms, SecondMoment{second_moment, gradient, factors},
              {second_moment, gradient}, whole, part, workspace);
}

void square_terms(Context& context, double* terms, const float* values, const SumRange& whole,
                  const SumRange& part, void* workspace) {
  start_terms(context, terms, Square{values}, {values}, whole, part, workspace);
}

}  // namespace longnet::cuda
