// The definition of cross_entropy.h in double, one thread. Twin: cross_entropy_cpu.cpp.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cross_entropy/cross_entropy.h"

namespace longnet::reference {

CrossEntropyResult cross_entropy(const TensorView& logits, const TensorView& targets, float scale,
                                 bool with_gradient) {
  CrossEntropyResult total;
  const int64_t width = logits.shape[1];
  for (int64_t t = 0; t < logits.shape[0]; ++t) {
    // 1. softmax of the row
    float* row = logits.f32() + t * logits.stride[0];
    const int64_t target = targets.as<int64_t>()[t];
    const double largest = *std::max_element(row, row + width);
    std::vector<double> p(width);
    double sum = 0;
    for (int64_t v = 0; v < width; ++v) sum += p[v] = std::exp(row[v] - largest);
    // 2. loss
    if (target >= 0) {
      total.loss_sum += std::log(sum) + largest - row[target];
      ++total.count;
    }
    // 3. gradient
    if (!with_gradient) continue;
    for (int64_t v = 0; v < width; ++v)
      row[v] =
          target < 0 ? 0.0f : static_cast<float>((p[v] / sum - (v == target ? 1.0 : 0.0)) * scale);
  }
  return total;
}

}  // namespace longnet::reference
