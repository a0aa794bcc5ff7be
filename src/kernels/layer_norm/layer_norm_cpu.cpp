// CPU twin of layer_norm.h: rows divided among threads, vectorised row loops. Each thread sums its
// own rows' weight gradients; the threads' sums are added in thread order (same bits every time).
#include "kernels/layer_norm/layer_norm_cpu.h"

#include <algorithm>
#include <cmath>

#include "core/clones.h"

namespace longnet::cpu {
namespace {

LN_CLONES void row_moments(const float* x, int64_t width, float* mean, float* variance) {
  // Measured from x[0], the sum of a row far from zero keeps its digits in any order of addition.
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) sum += x[i] - x[0];
  const float m = x[0] + sum / static_cast<float>(width);
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; ++i) squares += (x[i] - m) * (x[i] - m);
  *mean = m;
  *variance = squares / static_cast<float>(width);
}

LN_CLONES void scale_row(float* out, const float* x, const float* weight, const float* bias,
                         float mean, float rstd, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) out[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
}

LN_CLONES void add_rows(float* sum, const float* a, const float* b, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) sum[i] = a[i] + b[i];
}

LN_CLONES void row_backward(float* grad_x, float* grad_weight, float* grad_bias,
                            const float* grad_out, const float* x, const float* weight, float mean,
                            float rstd, float keep, int64_t width) {
  // y = n w + b, n = (x - mean) rstd:  dn = dy w,  dx = rstd (dn - avg(dn) - n avg(dn n))
  float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
  for (int64_t i = 0; i < width; ++i) {
    const float grad_n = grad_out[i] * weight[i], n = (x[i] - mean) * rstd;
    sum += grad_n;
    dot += grad_n * n;
  }
  sum /= static_cast<float>(width);
  dot /= static_cast<float>(width);
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const float g = grad_out[i], n = (x[i] - mean) * rstd;
    grad_weight[i] += g * n;
    grad_bias[i] += g;
    const float add = keep != 0 ? grad_x[i] : 0.0f;
    grad_x[i] = add + rstd * (g * weight[i] - sum - n * dot);
  }
}

/// Row `index` of a [T, G, W] view.
float* row_of(const TensorView& view, int64_t index) {
  return view.f32() + index / view.shape[1] * view.stride[0] +
         index % view.shape[1] * view.stride[1];
}

int64_t partial_stride(int64_t width) { return (width + 63) / 64 * 64; }

}  // namespace

int64_t layer_norm_partial_bytes(int threads, int64_t width) {
  return threads * 2 * partial_stride(width) * static_cast<int64_t>(sizeof(float));
}

void normalise_row(float* out, float* mean, float* rstd, const float* x, const float* weight,
                   const float* bias, float eps, int64_t width) {
  float variance;
  row_moments(x, width, mean, &variance);
  *rstd = 1.0f / std::sqrt(variance + eps);
  scale_row(out, x, weight, bias, *mean, *rstd, width);
}

void normalise_row_backward(float* grad_x, float* grad_weight, float* grad_bias,
                            const float* grad_out, const float* x, const float* weight, float mean,
                            float rstd, bool accumulate, int64_t width) {
  row_backward(grad_x, grad_weight, grad_bias, grad_out, x, weight, mean, rstd,
               accumulate ? 1.0f : 0.0f, width);
}

void add_partials(float* grad_weight, float* grad_bias, const float* partials, int threads,
                  int64_t width) {
  const int64_t stride = partial_stride(width);
  for (int thread = 0; thread < threads; ++thread) {
    const float* partial = partials + thread * 2 * stride;
    add_rows(grad_weight, grad_weight, partial, width);
    add_rows(grad_bias, grad_bias, partial + stride, width);
  }
}

void layer_norm_forward(Context& context, const LayerNormForward& args) {
  const int64_t rows = args.x.shape[0] * args.x.shape[1], width = args.x.shape[2];
  float *mean = args.mean.f32(), *rstd = args.rstd.f32();
  const float *weight = args.weight.f32(), *bias = args.bias.f32();
#pragma omp parallel for schedule(static) num_threads(context.threads()) if (rows * width > 8192)
  for (int64_t row = 0; row < rows; ++row) {
    const float* x = row_of(args.x, row);
    if (args.sum.defined()) {
      float* sum = row_of(args.sum, row);
      if (args.residual.defined())
        add_rows(sum, x, row_of(args.residual, row), width);
      else if (sum != x)
        std::copy_n(x, width, sum);
      x = sum;
    }
    normalise_row(row_of(args.out, row), mean + row, rstd + row, x, weight, bias, args.eps, width);
  }
}

void layer_norm_backward(Context& context, const LayerNormBackward& args, void* workspace) {
  const int64_t rows = args.x.shape[0] * args.x.shape[1], width = args.x.shape[2];
  const int64_t stride = partial_stride(width);
  const int threads = context.threads();
  float* partials = static_cast<float*>(workspace);
  const float *mean = args.mean.f32(), *rstd = args.rstd.f32(), *weight = args.weight.f32();
  std::fill_n(partials, threads * 2 * stride, 0.0f);
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (rows * width > 8192)
  for (int part = 0; part < threads; ++part) {
    float* partial = partials + part * 2 * stride;
    for (int64_t row = rows * part / threads; row < rows * (part + 1) / threads; ++row)
      normalise_row_backward(row_of(args.grad_x, row), partial, partial + stride,
                             row_of(args.grad_out, row), row_of(args.x, row), weight, mean[row],
                             rstd[row], args.accumulate, width);
  }
  add_partials(args.grad_weight.f32(), args.grad_bias.f32(), partials, threads, width);
}

}  // namespace longnet::cpu
