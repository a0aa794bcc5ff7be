// CPU twin of embedding.h. Backward: every thread walks all tokens in order but owns a range of
// columns, so no two threads add to one place and the order of each sum is the tokens'.
#include "kernels/embedding/embedding_cpu.h"

#include <algorithm>

namespace longnet::cpu {

void embedding_forward(Context& context, const TensorView& out, const TensorView& table,
                       const TensorView& tokens) {
  const int64_t width = out.shape[1], count = out.shape[0];
  const int64_t* token = tokens.as<int64_t>();
  float* rows = out.f32();
  const float* weights = table.f32();
#pragma omp parallel for schedule(static) num_threads(context.threads()) if (count * width > 65536)
  for (int64_t t = 0; t < count; ++t)
    std::copy_n(weights + token[t] * width, width, rows + t * width);
}

void embedding_backward(Context& context, const TensorView& grad_table, const TensorView& grad_out,
                        const TensorView& tokens) {
  const int64_t width = grad_out.shape[1], count = grad_out.shape[0];
  const int64_t* token = tokens.as<int64_t>();
  float* table = grad_table.f32();
  const float* grads = grad_out.f32();
  constexpr int64_t kColumns = 64;  // one owner's share: 256 bytes of each row
  const int64_t parts = (width + kColumns - 1) / kColumns;
#pragma omp parallel for schedule(static) num_threads(context.threads()) if (count * width > 65536)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = part * kColumns, length = std::min(kColumns, width - begin);
    for (int64_t t = 0; t < count; ++t) {
      float* to = table + token[t] * width + begin;
      const float* from = grads + t * width + begin;
#pragma omp simd
      for (int64_t c = 0; c < length; ++c) to[c] += from[c];
    }
  }
}

}  // namespace longnet::cpu
