// bfloat16 and float32, one number at a time; and any float tensor's elements as doubles.
//
// A bfloat16 is the upper half of a float32, so widening is exact; rounding is to the nearest, ties
// to even. Rows are converted by kernels/cast. The element functions are for references and tests.
#pragma once

#include <cstdint>

#include "core/clones.h"
#include "core/tensor.h"

namespace longnet {

LN_INLINE float to_float(bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  __builtin_memcpy(&result, &bits, sizeof result);
  return result;
}

/// Nearest bfloat16, ties to even; above the largest one: infinity; NaN stays NaN.
LN_INLINE bf16 to_bf16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  // A NaN whose lower half alone is set must not become an infinity: its quiet bit is set.
  const uint32_t nan = (bits >> 16) | 0x40u;
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}

inline bool is_float_type(DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16; }

/// Element `offset` (in elements from the view's first) of an f32 or bf16 view in host memory.
inline double element_at(const TensorView& view, int64_t offset) {
  return view.dtype == DType::kBF16 ? to_float(view.as<bf16>()[offset]) : view.f32()[offset];
}
/// Stores a value there, rounded to the view's type.
inline void set_element(const TensorView& view, int64_t offset, double value) {
  if (view.dtype == DType::kBF16)
    view.as<bf16>()[offset] = to_bf16(static_cast<float>(value));
  else
    view.f32()[offset] = static_cast<float>(value);
}

}  // namespace longnet
