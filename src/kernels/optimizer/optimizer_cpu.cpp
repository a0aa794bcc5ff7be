// CPU twin of optimizer.h: flat loops, divided among threads in fixed blocks.
#include "kernels/optimizer/optimizer_cpu.h"

#include <algorithm>

#include "core/clones.h"

namespace longnet::cpu {
namespace {

constexpr int64_t kBlock = 16384;  // elements: 64 KiB per array, four arrays stay in L2

LN_CLONES void adamw_block(float* w, float* m, float* v, const float* g, AdamWFactors f,
                           int64_t n) {
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
LN_CLONES int64_t second_moment_cells(double* cells, float* v, const float* g, AdamWFactors f,
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

LN_CLONES void stable_block(float* w, float* m, const float* v, const float* g, AdamWFactors f,
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

template <typename Body>
void for_blocks(Context& context, int64_t n, Body body) {
  const int64_t blocks = (n + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) num_threads(context.threads()) if (blocks > 2)
  for (int64_t b = 0; b < blocks; ++b) body(b * kBlock, std::min(kBlock, n - b * kBlock));
}

}  // namespace

void adamw_update(Context& context, float* weight, float* first_moment, float* second_moment,
                  const float* gradient, int64_t n, const AdamWFactors& factors) {
  for_blocks(context, n, [&](int64_t begin, int64_t count) {
    adamw_block(weight + begin, first_moment + begin, second_moment + begin, gradient + begin,
                factors, count);
  });
}

void stable_terms(Context& context, double* terms, float* v, const float* g,
                  const AdamWFactors& factors, const SumRange& whole, const SumRange& part) {
  sum_terms(context, terms, whole, part, [&](double* cells, int64_t place, int64_t at, int64_t n) {
    return second_moment_cells(cells, v + place, g + place, factors, at, n);
  });
}

double stable_sum(Context& context, float* v, const float* g, const AdamWFactors& factors,
                  const SumRange& whole) {
  return sum_whole(context, whole, [&](double* cells, int64_t place, int64_t at, int64_t n) {
    return second_moment_cells(cells, v + place, g + place, factors, at, n);
  });
}

void stable_apply(Context& context, float* weight, float* first_moment, const float* second_moment,
                  const float* gradient, int64_t n, const AdamWFactors& factors) {
  for_blocks(context, n, [&](int64_t begin, int64_t count) {
    stable_block(weight + begin, first_moment + begin, second_moment + begin, gradient + begin,
                 factors, count);
  });
}

void square_terms(Context& context, double* terms, const float* x, const SumRange& whole,
                  const SumRange& part) {
  sum_terms(context, terms, whole, part, [&](double* cells, int64_t place, int64_t at, int64_t n) {
    return squares_cells(cells, x + place, at, n);
  });
}

double square_sum(Context& context, const float* x, const SumRange& whole) {
  return sum_whole(context, whole, [&](double* cells, int64_t place, int64_t at, int64_t n) {
    return squares_cells(cells, x + place, at, n);
  });
}

}  // namespace longnet::cpu
