// bfloat16 bits and floats, as far as no instruction of the GPU is needed (those are in ptx.h).
#pragma once

#include <cstdint>
#include <cstring>

namespace longnet::cuda {

/// bfloat16 bits to float; exact.
__device__ __forceinline__ float bf16_to_float(uint16_t bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

/// float to bfloat16 bits on the host: nearest even, NaN stays NaN, as float_to_bf16 of ptx.h.
inline uint16_t float_to_bf16_host(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace longnet::cuda
