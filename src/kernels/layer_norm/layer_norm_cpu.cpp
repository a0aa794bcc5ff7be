// CPU twin of layer_norm.h: rows divided among threads, vectorised row loops. Each thread sums its
// own rows' weight gradients; the threads' sums are added in thread order (same bits every time).
#include "kernels/layer_norm/layer_norm_cpu.h"

#include <algorithm>
#include <cmath>

#include "core/clones.h"
#include "kernels/cast/cast_cpu.h"

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

// y = n w + b, n = (x - mean) rstd:  dn = dy w,  dx = rstd (dn - avg(dn) - n avg(dn n))

/// sum += sum of dn, dot += sum of dn n.
LN_INLINE void add_row_sums(float* sum_out, float* dot_out, const float* grad_out, const float* x,
                            const float* weight, float mean, float rstd, int64_t width) {
  float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
  for (int64_t i = 0; i < width; ++i) {
    const float grad_n = grad_out[i] * weight[i], n = (x[i] - mean) * rstd;
    sum += grad_n;
    dot += grad_n * n;
  }
  *sum_out += sum;
  *dot_out += dot;
}

/// sum, dot: the averages over the row.
LN_INLINE void apply_row(float* grad_x, float* grad_weight, float* grad_bias, const float* grad_out,
                         const float* x, const float* weight, float mean, float rstd, float sum,
                         float dot, float keep, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const float g = grad_out[i], n = (x[i] - mean) * rstd;
    grad_weight[i] += g * n;
    grad_bias[i] += g;
    const float add = keep != 0 ? grad_x[i] : 0.0f;
    grad_x[i] = add + rstd * (g * weight[i] - sum - n * dot);
  }
}

LN_CLONES void row_backward(float* grad_x, float* grad_weight, float* grad_bias,
                            const float* grad_out, const float* x, const float* weight, float mean,
                            float rstd, float keep, int64_t width) {
  float sum = 0, dot = 0;
  add_row_sums(&sum, &dot, grad_out, x, weight, mean, rstd, width);
  sum /= static_cast<float>(width);
  dot /= static_cast<float>(width);
  apply_row(grad_x, grad_weight, grad_bias, grad_out, x, weight, mean, rstd, sum, dot, keep, width);
}

// LayerNorm in pieces of a row, for tensors that are not f32: each piece is widened in L1.

constexpr int64_t kPiece = 1024;

LN_CLONES float piece_sum(const float* x, float origin, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] - origin;
  return sum;
}
LN_CLONES float piece_squares(const float* x, float mean, int64_t n) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  return squares;
}
LN_CLONES void piece_backward_sums(float* sum, float* dot, const float* grad_out, const float* x,
                                   const float* weight, float mean, float rstd, int64_t n) {
  add_row_sums(sum, dot, grad_out, x, weight, mean, rstd, n);
}
LN_CLONES void piece_backward(float* grad_x, float* grad_weight, float* grad_bias,
                              const float* grad_out, const float* x, const float* weight,
                              float mean, float rstd, float sum, float dot, float keep, int64_t n) {
  apply_row(grad_x, grad_weight, grad_bias, grad_out, x, weight, mean, rstd, sum, dot, keep, n);
}

/// Elements before row `index` of a [T, G, W] view.
int64_t row_offset(const TensorView& view, int64_t index) {
  return index / view.shape[1] * view.stride[0] + index % view.shape[1] * view.stride[1];
}
float* row_of(const TensorView& view, int64_t index) {
  return view.f32() + row_offset(view, index);
}

/// f(begin, count) for the pieces of a row.
template <typename F>
void for_pieces(int64_t width, F f) {
  for (int64_t begin = 0; begin < width; begin += kPiece) f(begin, std::min(kPiece, width - begin));
}

bool all_f32(std::initializer_list<const TensorView*> views) {
  return std::all_of(views.begin(), views.end(), [](const TensorView* view) {
    return !view->defined() || view->dtype == DType::kF32;
  });
}

/// One row of the forward, of any float types.
void forward_row_in_pieces(const LayerNormForward& args, int64_t row) {
  const int64_t width = args.x.shape[2];
  float buffer[kPiece], other[kPiece];
  const int64_t x = row_offset(args.x, row), out = row_offset(args.out, row);
  if (args.sum.defined()) {
    const int64_t sum = row_offset(args.sum, row);
    for_pieces(width, [&](int64_t begin, int64_t n) {
      const float* from = read_row(args.x, x + begin, n, buffer);
      float* to = place_of_row(args.sum, sum + begin, buffer);
      if (args.residual.defined())
        add_rows(to, from,
                 read_row(args.residual, row_offset(args.residual, row) + begin, n, other), n);
      else if (to != from)
        std::copy_n(from, n, to);
      write_row(args.sum, sum + begin, n, buffer);
    });
  }
  const TensorView& input = args.sum.defined() ? args.sum : args.x;
  const int64_t place = row_offset(input, row);
  const auto piece = [&](int64_t begin, int64_t n) {
    return read_row(input, place + begin, n, buffer);
  };
  const float origin = *piece(0, 1);
  float sum = 0, squares = 0;
  for_pieces(width, [&](int64_t b, int64_t n) { sum += piece_sum(piece(b, n), origin, n); });
  const float mean = origin + sum / static_cast<float>(width);
  for_pieces(width, [&](int64_t b, int64_t n) { squares += piece_squares(piece(b, n), mean, n); });
  const float rstd = 1.0f / std::sqrt(squares / static_cast<float>(width) + args.eps);
  args.mean.f32()[row] = mean;
  args.rstd.f32()[row] = rstd;
  for_pieces(width, [&](int64_t b, int64_t n) {
    scale_row(place_of_row(args.out, out + b, other), piece(b, n), args.weight.f32() + b,
              args.bias.f32() + b, mean, rstd, n);
    write_row(args.out, out + b, n, other);
  });
}

/// One row of the backward, of any float types; grad_weight, grad_bias: the thread's parts.
void backward_row_in_pieces(const LayerNormBackward& args, int64_t row, float* grad_weight,
                            float* grad_bias) {
  const int64_t width = args.x.shape[2];
  float x_buffer[kPiece], grad_buffer[kPiece], out_buffer[kPiece];
  const int64_t x = row_offset(args.x, row), grad_out = row_offset(args.grad_out, row);
  const int64_t grad_x = row_offset(args.grad_x, row);
  const float mean = args.mean.f32()[row], rstd = args.rstd.f32()[row];
  const float* weight = args.weight.f32();
  float sum = 0, dot = 0;
  for_pieces(width, [&](int64_t b, int64_t n) {
    piece_backward_sums(&sum, &dot, read_row(args.grad_out, grad_out + b, n, grad_buffer),
                        read_row(args.x, x + b, n, x_buffer), weight + b, mean, rstd, n);
  });
  sum /= static_cast<float>(width);
  dot /= static_cast<float>(width);
  for_pieces(width, [&](int64_t b, int64_t n) {
    float* to = place_of_row(args.grad_x, grad_x + b, out_buffer);
    if (args.accumulate) read_row(args.grad_x, grad_x + b, n, out_buffer);
    piece_backward(to, grad_weight + b, grad_bias + b,
                   read_row(args.grad_out, grad_out + b, n, grad_buffer),
                   read_row(args.x, x + b, n, x_buffer), weight + b, mean, rstd, sum, dot,
                   args.accumulate ? 1.0f : 0.0f, n);
    write_row(args.grad_x, grad_x + b, n, out_buffer);
  });
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
  const bool in_place = all_f32({&args.out, &args.sum, &args.x, &args.residual});
#pragma omp parallel for schedule(static) num_threads(context.threads()) if (rows * width > 8192)
  for (int64_t row = 0; row < rows; ++row) {
    if (!in_place) {
      forward_row_in_pieces(args, row);
      continue;
    }
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
  const bool in_place = all_f32({&args.grad_x, &args.grad_out, &args.x});
  std::fill_n(partials, threads * 2 * stride, 0.0f);
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (rows * width > 8192)
  for (int part = 0; part < threads; ++part) {
    float* partial = partials + part * 2 * stride;
    for (int64_t row = rows * part / threads; row < rows * (part + 1) / threads; ++row) {
      if (!in_place)
        backward_row_in_pieces(args, row, partial, partial + stride);
      else
        normalise_row_backward(row_of(args.grad_x, row), partial, partial + stride,
                               row_of(args.grad_out, row), row_of(args.x, row), weight, mean[row],
                               rstd[row], args.accumulate, width);
    }
  }
  add_partials(args.grad_weight.f32(), args.grad_bias.f32(), partials, threads, width);
}

}  // namespace longnet::cpu
