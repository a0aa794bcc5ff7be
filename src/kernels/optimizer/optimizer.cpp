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

/// First pass of StableAdamW: new second moments; per cell the sum of g^2 / max(v, eps^2).
/// at: place of the first element in the flat buffer. Returns the number of cells.
LN_CLONES int64_t second_moment_cells(double* cells, float* v, const float* g, Factors f,
                                      int64_t at, int64_t n) {
  const float floor = f.eps * f.eps;
  int64_t count = 0;
  for (int64_t begin = 0; begin < n;) {
    const int64_t rest = kSumCell - (at + begin) % kSumCell;
    const int64_t end = begin + rest < n ? begin + rest : n;
    float partial = 0;
#pragma omp simd reduction(+ : partial)
    for (int64_t i = begin; i < end; ++i) {
      const float grad = g[i] * f.gradient_scale;
      v[i] = f.beta2 * v[i] + (1.0f - f.beta2) * grad * grad;
      partial += grad * grad / (v[i] > floor ? v[i] : floor);
    }
    cells[count++] = partial;
    begin = end;
  }
  return count;
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

/// Per cell the sum of squares; as above.
LN_CLONES int64_t squares_cells(double* cells, const float* x, int64_t at, int64_t n) {
  int64_t count = 0;
  for (int64_t begin = 0; begin < n;) {
    const int64_t rest = kSumCell - (at + begin) % kSumCell;
    const int64_t end = begin + rest < n ? begin + rest : n;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) sum += static_cast<double>(x[i]) * x[i];
    cells[count++] = sum;
    begin = end;
  }
  return count;
}

/// What of block b lies in `part`, and whether that is all that lies in `whole`.
struct BlockPart {
  SumRange range;
  bool whole;
  int64_t terms() const {
    return whole ? 1 : (range.end - 1) / kSumCell - range.begin / kSumCell + 1;
  }
};
BlockPart block_part(const SumRange& whole, const SumRange& part, int64_t b) {
  const auto inside = [&](const SumRange& range) {
    return SumRange{std::max(range.begin, b * kSumBlock), std::min(range.end, (b + 1) * kSumBlock)};
  };
  const SumRange mine = inside(part), all = inside(whole);
  return {mine, mine.begin == all.begin && mine.end == all.end};
}

/// The terms of `part`. cells_of(cells, place in the part, place in the buffer, n) writes the sums
/// of a block's cells and returns their number.
template <typename CellsOf>
void sum_terms(Context& context, double* terms, const SumRange& whole, const SumRange& part,
               CellsOf cells_of) {
  if (part.begin >= part.end) return;
  const int64_t first = part.begin / kSumBlock, last = (part.end - 1) / kSumBlock;
  const int64_t first_terms = block_part(whole, part, first).terms();
#pragma omp parallel for schedule(static) num_threads(context.threads()) if (last - first > 1)
  for (int64_t b = first; b <= last; ++b) {
    const BlockPart block = block_part(whole, part, b);
    double cells[kSumBlock / kSumCell];
    const int64_t count = cells_of(cells, block.range.begin - part.begin, block.range.begin,
                                   block.range.end - block.range.begin);
    double* out = terms + (b == first ? 0 : first_terms + b - first - 1);
    if (block.whole) {
      double sum = 0;
      for (int64_t i = 0; i < count; ++i) sum += cells[i];
      *out = sum;
    } else {
      std::copy_n(cells, count, out);
    }
  }
}

/// The sum over a whole that is all here.
template <typename CellsOf>
double sum_whole(Context& context, const SumRange& whole, CellsOf cells_of) {
  constexpr int64_t kBatch = 1024;  // terms held at a time, so that nothing is allocated
  double terms[kBatch];
  double total = 0;
  for (SumRange part{whole.begin, whole.begin}; part.begin < whole.end; part.begin = part.end) {
    const int64_t first = part.begin / kSumBlock;
    part.end = std::min(whole.end, (first + kBatch) * kSumBlock);
    sum_terms(context, terms, whole, part,
              [&](double* cells, int64_t place, int64_t at, int64_t n) {
                return cells_of(cells, part.begin - whole.begin + place, at, n);
              });
    const int64_t count = (part.end - 1) / kSumBlock - first + 1;
    for (int64_t b = 0; b < count; ++b) total += terms[b];
  }
  return total;
}

// b_t = b (1 - b^(t-1)) / (1 - b^t): 0 at the first step, b in the limit.
double stable_beta(double beta, int64_t step) {
  return beta * (1.0 - std::pow(beta, step - 1)) / (1.0 - std::pow(beta, step));
}

Factors stable_factors(const AdamWOptions& options, double rate) {
  return {static_cast<float>(options.gradient_scale),
          static_cast<float>(stable_beta(options.beta1, options.step)),
          static_cast<float>(stable_beta(options.beta2, options.step)),
          static_cast<float>(rate),
          static_cast<float>(1.0 - rate * options.weight_decay),
          1.0f,
          static_cast<float>(options.eps)};
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
  const Factors factors = stable_factors(options, 0);
  float* v = second_moment.f32();
  const float* g = gradient.f32();
  const int64_t count = weight.elements();
  const double ratio =
      sum_whole(context, {options.offset, options.offset + count},
                [&](double* cells, int64_t place, int64_t at, int64_t n) {
                  return second_moment_cells(cells, v + place, g + place, factors, at, n);
                });
  const double rms = std::sqrt(ratio / static_cast<double>(count));
  stable_adamw_apply(context, weight, first_moment, second_moment, gradient, options, rms);
  return rms;
}

void stable_adamw_terms(Context& context, std::span<double> terms, const TensorView& second_moment,
                        const TensorView& gradient, const AdamWOptions& options,
                        const SumRange& whole, const SumRange& part) {
  check(second_moment, second_moment, second_moment, gradient, options);
  LN_CHECK(second_moment.elements() == part.end - part.begin &&
               static_cast<int64_t>(terms.size()) == sum_term_count(whole, part),
           "{} and {} terms for [{}, {})", second_moment.describe(), terms.size(), part.begin,
           part.end);
  if (context.counting()) return;
  const Factors factors = stable_factors(options, 0);
  float* v = second_moment.f32();
  const float* g = gradient.f32();
  sum_terms(context, terms.data(), whole, part,
            [&](double* cells, int64_t place, int64_t at, int64_t n) {
              return second_moment_cells(cells, v + place, g + place, factors, at, n);
            });
}

void stable_adamw_apply(Context& context, const TensorView& weight, const TensorView& first_moment,
                        const TensorView& second_moment, const TensorView& gradient,
                        const AdamWOptions& options, double root_mean_square) {
  check(weight, first_moment, second_moment, gradient, options);
  if (context.counting()) return;
  const Factors factors =
      stable_factors(options, options.learning_rate / std::max(1.0, root_mean_square));
  float *w = weight.f32(), *m = first_moment.f32(), *v = second_moment.f32();
  const float* g = gradient.f32();
  for_blocks(context, weight.elements(), [&](int64_t begin, int64_t n) {
    stable_block(w + begin, m + begin, v + begin, g + begin, factors, n);
  });
}

double sum_of_squares(Context& context, const TensorView& values) {
  LN_CHECK(values.contiguous(), "sum of squares of the strided {}", values.describe());
  if (context.counting()) return 0.0;
  const float* x = values.f32();
  return sum_whole(context, {0, values.elements()},
                   [&](double* cells, int64_t place, int64_t at, int64_t n) {
                     return squares_cells(cells, x + place, at, n);
                   });
}

void sum_of_squares_terms(Context& context, std::span<double> terms, const TensorView& values,
                          const SumRange& whole, const SumRange& part) {
  LN_CHECK(values.contiguous() && values.elements() == part.end - part.begin &&
               static_cast<int64_t>(terms.size()) == sum_term_count(whole, part),
           "{} and {} terms for [{}, {})", values.describe(), terms.size(), part.begin, part.end);
  if (context.counting()) return;
  const float* x = values.f32();
  sum_terms(context, terms.data(), whole, part,
            [&](double* cells, int64_t place, int64_t at, int64_t n) {
              return squares_cells(cells, x + place, at, n);
            });
}

int64_t sum_term_count(const SumRange& whole, const SumRange& part) {
  if (part.begin == part.end) return 0;
  LN_CHECK(part.begin < part.end && whole.begin <= part.begin && part.end <= whole.end &&
               (part.begin % kSumCell == 0 || part.begin == whole.begin) &&
               (part.end % kSumCell == 0 || part.end == whole.end),
           "part [{}, {}) of a sum over [{}, {})", part.begin, part.end, whole.begin, whole.end);
  const int64_t first = part.begin / kSumBlock, last = (part.end - 1) / kSumBlock;
  if (first == last) return block_part(whole, part, first).terms();
  return block_part(whole, part, first).terms() + last - first - 1 +
         block_part(whole, part, last).terms();
}

double add_sum_terms(const SumRange& whole, std::span<const SumRange> parts,
                     std::span<const double> terms) {
  double total = 0, cells = 0;  // of the blocks so far; of the block that is not yet complete
  size_t next = 0;
  for (const SumRange& part : parts) {
    const int64_t count = sum_term_count(whole, part);
    if (count == 0) continue;
    LN_CHECK(next + static_cast<size_t>(count) <= terms.size(), "{} terms are too few",
             terms.size());
    for (int64_t b = part.begin / kSumBlock; b <= (part.end - 1) / kSumBlock; ++b) {
      const BlockPart block = block_part(whole, part, b);
      if (block.whole) {
        total += terms[next++];
        continue;
      }
      for (int64_t i = block.terms(); i > 0; --i) cells += terms[next++];
      if (block.range.end == std::min(whole.end, (b + 1) * kSumBlock)) {
        total += cells;
        cells = 0;
      }
    }
  }
  LN_CHECK(next == terms.size(), "{} terms, {} used", terms.size(), next);
  return total;
}

}  // namespace longnet
