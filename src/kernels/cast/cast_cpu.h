// The CPU twin of cast.h, for the dispatcher; and its rows, for other kernels' CPU twins.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet::cpu {

void cast(Context& context, const TensorView& out, const TensorView& in);

/// out[i] = in[i], n elements: exact, and rounded to nearest even.
void widen_row(float* out, const bf16* in, int64_t n);
void round_row(bf16* out, const float* in, int64_t n);

/// Elements `offset` .. offset + n of a view as float32: in place, or widened into buffer [n].
inline const float* read_row(const TensorView& view, int64_t offset, int64_t n, float* buffer) {
  if (view.dtype == DType::kF32) return static_cast<const float*>(view.data) + offset;
  widen_row(buffer, static_cast<const bf16*>(view.data) + offset, n);
  return buffer;
}
/// Where to write such elements: in place, or into buffer, which write_row then rounds into the
/// view.
inline float* place_of_row(const TensorView& view, int64_t offset, float* buffer) {
  return view.dtype == DType::kF32 ? static_cast<float*>(view.data) + offset : buffer;
}
inline void write_row(const TensorView& view, int64_t offset, int64_t n, const float* buffer) {
  if (view.dtype == DType::kBF16) round_row(static_cast<bf16*>(view.data) + offset, buffer, n);
}

}  // namespace longnet::cpu
