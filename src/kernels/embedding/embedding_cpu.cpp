// CPU twin of embedding.h. Backward: every thread walks all tokens in order but owns a range of
// columns, so no two threads add to one place and the order of each sum is the tokens'.
#include "kernels/embedding/embedding_cpu.h"

#include <algorithm>
#include <cstring>

#include "kernels/cast/cast_cpu.h"

namespace longnet::cpu {

void embedding_forward(Context& context, const TensorView& out, const TensorView& table,
                       const TensorView& tokens) {
  const int64_t width = out.shape[1], count = out.shape[0];
  const int64_t* token = tokens.as<int64_t>();
  const int64_t bytes = width * dtype_size(table.dtype);
  const char* weights = static_cast<const char*>(table.data);
  char* rows = static_cast<char*>(out.data);
#pragma omp parallel for schedule(static) num_threads(context.threads()) if (count * width > 65536)
  for (int64_t t = 0; t < count; ++t) {
    if (out.dtype == table.dtype)
      std::memcpy(rows + t * bytes, weights + token[t] * bytes, static_cast<size_t>(bytes));
    else if (out.dtype == DType::kF32)
      widen_row(out.f32() + t * width, table.as<bf16>() + token[t] * width, width);
    else
      round_row(out.as<bf16>() + t * width, table.f32() + token[t] * width, width);
  }
}

void embedding_backward(Context& context, const TensorView& grad_table, const TensorView& grad_out,
                        const TensorView& tokens) {
  const int64_t width = grad_out.shape[1], count = grad_out.shape[0];
  const int64_t* token = tokens.as<int64_t>();
  float* table = grad_table.f32();
  constexpr int64_t kColumns = 64;  // one owner's share: 256 bytes of each row
  const int64_t parts = (width + kColumns - 1) / kColumns;
#pragma omp parallel for schedule(static) num_threads(context.threads()) if (count * width > 65536)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = part * kColumns, length = std::min(kColumns, width - begin);
    for (int64_t t = 0; t < count; ++t) {
      float* to = table + token[t] * width + begin;
      float buffer[kColumns];
      const float* from = read_row(grad_out, t * width + begin, length, buffer);
#pragma omp simd
      for (int64_t c = 0; c < length; ++c) to[c] += from[c];
    }
  }
}

}  // namespace longnet::cpu
