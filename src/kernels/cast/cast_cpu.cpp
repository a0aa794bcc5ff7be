// CPU twin of cast.h: blocks divided among threads, row loops that the compiler vectorises.
#include "kernels/cast/cast_cpu.h"

#include <algorithm>

#include "core/bf16.h"
#include "core/clones.h"

namespace longnet::cpu {

LN_CLONES void widen_row(float* out, const bf16* in, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = to_float(in[i]);
}

LN_CLONES void round_row(bf16* out, const float* in, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = to_bf16(in[i]);
}

void cast(Context& context, const TensorView& out, const TensorView& in) {
  constexpr int64_t kBlock = 16384;
  const int64_t n = in.elements(), blocks = (n + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) num_threads(context.threads()) if (blocks > 2)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = block * kBlock, count = std::min(kBlock, n - begin);
    if (in.dtype == out.dtype)
      std::copy_n(static_cast<const char*>(in.data) + begin * dtype_size(in.dtype),
                  count * dtype_size(in.dtype),
                  static_cast<char*>(out.data) + begin * dtype_size(in.dtype));
    else if (in.dtype == DType::kF32)
      round_row(out.as<bf16>() + begin, in.f32() + begin, count);
    else
      widen_row(out.f32() + begin, in.as<bf16>() + begin, count);
  }
}

}  // namespace longnet::cpu
