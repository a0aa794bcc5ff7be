// CPU twin of cross_entropy.h: rows divided among threads. Losses are summed in double in blocks of
// 64 rows, blocks in order, so the sum does not depend on the threads.
#include "kernels/cross_entropy/cross_entropy_cpu.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/clones.h"
#include "kernels/activation/activation_math.h"

namespace longnet::cpu {
namespace {

LN_CLONES float row_maximum(const float* row, int64_t width) {
  float largest = row[0];
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < width; ++i) largest = row[i] > largest ? row[i] : largest;
  return largest;
}

/// Blocks keep the float32 sums short in large vocabularies.
LN_CLONES float row_exp_sum(const float* row, float largest, int64_t width) {
  double total = 0;
  for (int64_t begin = 0; begin < width; begin += 1024) {
    const int64_t end = begin + 1024 < width ? begin + 1024 : width;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) sum += fast_exp(row[i] - largest);
    total += sum;
  }
  return static_cast<float>(total);
}

LN_CLONES void row_softmax(float* row, float largest, float factor, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) row[i] = fast_exp(row[i] - largest) * factor;
}

}  // namespace

void cross_entropy(Context& context, CrossEntropySums* sums, const TensorView& logits,
                   const TensorView& targets, float scale, bool with_gradient) {
  constexpr int64_t kBlock = 64, kBatch = 64;  // rows a block; blocks whose sums are held at a time
  const int64_t rows = logits.shape[0], width = logits.shape[1];
  const int64_t* target = targets.as<int64_t>();
  float* values = logits.f32();
  for (int64_t t = 0; t < rows && sums->bad_row < 0; ++t)
    if (target[t] < -1 || target[t] >= width) {
      sums->bad_row = sums->rows + t;
      sums->bad_target = target[t];
    }
  CrossEntropyResult total;
  for (int64_t first = 0; first < rows; first += kBlock * kBatch) {
    const int64_t blocks = std::min(kBatch, (rows - first + kBlock - 1) / kBlock);
    std::array<CrossEntropyResult, kBatch> partial{};
#pragma omp parallel for schedule(static) num_threads(context.threads()) if (rows * width > 4096)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t begin = first + block * kBlock, end = std::min(rows, begin + kBlock);
      for (int64_t t = begin; t < end; ++t) {
        float* row = values + t * width;
        if (target[t] < 0 || target[t] >= width) {
          if (with_gradient) std::fill_n(row, width, 0.0f);
          continue;
        }
        const float largest = row_maximum(row, width);
        const float sum = row_exp_sum(row, largest, width);
        // NaN anywhere in the row makes `sum` NaN, and so the loss.
        partial[block].loss_sum +=
            std::log(static_cast<double>(sum)) + (static_cast<double>(largest) - row[target[t]]);
        ++partial[block].count;
        if (!with_gradient) continue;
        // grad = (softmax - one_hot(target)) scale
        row_softmax(row, largest, scale / sum, width);
        row[target[t]] -= scale;
      }
    }
    for (int64_t block = 0; block < blocks; ++block) {
      total.loss_sum += partial[block].loss_sum;
      total.count += partial[block].count;
    }
  }
  sums->nats += total.loss_sum;
  sums->count += total.count;
  sums->rows += rows;
}

}  // namespace longnet::cpu
