// Dispatcher and CPU twin of optimizer.h: flat loops, divided among threads in fixed blocks.
#include "kernels/optimizer/optimizer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/clones.h"

namespace longnet {
namespace {

constexpr int64_t kBlock = 16384;  // elements: 64 KiB per array, four arrays stay in L2

void check(const TensorView& weight, const TensorView& first_moment,
           const TensorView& second_moment, const TensorView& gradient,
           const AdamWOptions& options) {
  for (const TensorView* view : {&weight, &first_moment, &second_moment, &gradient}) {
    LN_CHECK(view->elements() == weight.elements() && view->contiguous(), "{} beside {}",
             view->describe(), weight.describe());
    if (view->dtype != DType::kF32)
      throw Error("optimizer state is {}; allowed: f32", dtype_name(view->dtype));
  }
  LN_CHECK(options.step >= 1, "step {}", options.step);
}

struct Factors {
  float gradient_scale, beta1, beta2, rate, decay, inverse_correction2, eps;
};

LN_CLONES void adamw_block(float* w, float* m, float* v, const float* g, Factors f, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float grad = g[i] * f.gradient_scale;
    m[i] = f.beta1 * m[i] + (1.0f - f.beta1) * grad;
    v[i] = f.beta2 * v[i] + (1.0f - f.beta2) * grad * grad;
    const float root = __builtin_sqrtf(v[i] * f.inverse_correction2);
    w[i] = w[i] * f.decay - f.rate * m[i] / (root + f.eps);
  }
}

/// First pass of StableAdamW: new second moments and the sum of g^2 / max(v, eps^2).
LN_CLONES double second_moment_block(float* v, const float* g, Factors f, int64_t n) {
  const float floor = f.eps * f.eps;
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += 256) {
    const int64_t end = begin + 256 < n ? begin + 256 : n;
    float partial = 0;
#pragma omp simd reduction(+ : partial)
    for (int64_t i = begin; i < end; ++i) {
      const float grad = g[i] * f.gradient_scale;
      v[i] = f.beta2 * v[i] + (1.0f - f.beta2) * grad * grad;
      partial += grad * grad / (v[i] > floor ? v[i] : floor);
    }
    sum += partial;
  }
  return sum;
}

LN_CLONES void stable_block(float* w, float* m, const float* v, const float* g, Factors f,
                            int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float grad = g[i] * f.gradient_scale;
    m[i] = f.beta1 * m[i] + (1.0f - f.beta1) * grad;
    w[i] = w[i] * f.decay - f.rate * m[i] / (__builtin_sqrtf(v[i]) + f.eps);
  }
}

LN_CLONES double squares_block(const float* x, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return sum;
}

/// Sums sum_of(block) over blocks of kBlock elements, blocks in order: the result depends on n
/// alone.
template <typename SumOf>
double sum_blocks(Context& context, int64_t n, SumOf sum_of) {
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  constexpr int64_t kBatch = 1024;  // block sums held at a time, so that nothing is allocated
  double partial[kBatch];
  double total = 0;
  for (int64_t first = 0; first < blocks; first += kBatch) {
    const int64_t count = std::min(kBatch, blocks - first);
#pragma omp parallel for schedule(static) num_threads(context.threads()) if (count > 2)
    for (int64_t b = 0; b < count; ++b) {
      const int64_t begin = (first + b) * kBlock;
      partial[b] = sum_of(begin, std::min(kBlock, n - begin));
    }
    for (int64_t b = 0; b < count; ++b) total += partial[b];
  }
  return total;
}

template <typename Body>
void for_blocks(Context& context, int64_t n, Body body) {
  const int64_t blocks = (n + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) num_threads(context.threads()) if (blocks > 2)
  for (int64_t b = 0; b < blocks; ++b) body(b * kBlock, std::min(kBlock, n - b * kBlock));
}

}  // namespace

void adamw_update(Context& context, const TensorView& weight, const TensorView& first_moment,
                  const TensorView& second_moment, const TensorView& gradient,
                  const AdamWOptions& options) {
  check(weight, first_moment, second_moment, gradient, options);
  if (context.counting()) return;
  const double correction1 = 1.0 - std::pow(options.beta1, options.step);
  const double correction2 = 1.0 - std::pow(options.beta2, options.step);
  const Factors factors{static_cast<float>(options.gradient_scale),
                        static_cast<float>(options.beta1),
                        static_cast<float>(options.beta2),
                        static_cast<float>(options.learning_rate / correction1),
                        static_cast<float>(1.0 - options.learning_rate * options.weight_decay),
                        static_cast<float>(1.0 / correction2),
                        static_cast<float>(options.eps)};
  float *w = weight.f32(), *m = first_moment.f32(), *v = second_moment.f32();
  const float* g = gradient.f32();
  for_blocks(context, weight.elements(), [&](int64_t begin, int64_t n) {
    adamw_block(w + begin, m + begin, v + begin, g + begin, factors, n);
  });
}

double stable_adamw_update(Context& context, const TensorView& weight,
                           const TensorView& first_moment, const TensorView& second_moment,
                           const TensorView& gradient, const AdamWOptions& options) {
  check(weight, first_moment, second_moment, gradient, options);
  if (context.counting() || weight.elements() == 0) return 1.0;
  // b_t = b (1 - b^(t-1)) / (1 - b^t): 0 at the first step, b in the limit.
  const auto beta_at = [&](double beta) {
    return beta * (1.0 - std::pow(beta, options.step - 1)) / (1.0 - std::pow(beta, options.step));
  };
  Factors factors{static_cast<float>(options.gradient_scale),
                  static_cast<float>(beta_at(options.beta1)),
                  static_cast<float>(beta_at(options.beta2)),
                  0.0f,
                  0.0f,
                  1.0f,
                  static_cast<float>(options.eps)};
  float *w = weight.f32(), *m = first_moment.f32(), *v = second_moment.f32();
  const float* g = gradient.f32();
  const int64_t count = weight.elements();
  const double ratio = sum_blocks(context, count, [&](int64_t begin, int64_t n) {
    return second_moment_block(v + begin, g + begin, factors, n);
  });
  const double rms = std::sqrt(ratio / static_cast<double>(count));
  const double rate = options.learning_rate / std::max(1.0, rms);
  factors.rate = static_cast<float>(rate);
  factors.decay = static_cast<float>(1.0 - rate * options.weight_decay);
  for_blocks(context, count, [&](int64_t begin, int64_t n) {
    stable_block(w + begin, m + begin, v + begin, g + begin, factors, n);
  });
  return rms;
}

double sum_of_squares(Context& context, const TensorView& values) {
  LN_CHECK(values.contiguous(), "sum of squares of the strided {}", values.describe());
  if (context.counting()) return 0.0;
  const float* x = values.f32();
  return sum_blocks(context, values.elements(),
                    [&](int64_t begin, int64_t n) { return squares_block(x + begin, n); });
}

}  // namespace longnet
