// A small matrix product of two bf16 matrices through every wrapper of kernels/cuda/mma.h: what the
// emulator and a GPU are both held to.
#pragma once

#include <cstdint>

namespace longnet::simt_test {

/// c [m, n] f32 = a [m, k] b [k, n], bf16 bits, row-major. m, n: multiples of 64; k: of 8.
void product_bf16(float* c, const uint16_t* a, const uint16_t* b, int m, int n, int k,
                  void* stream);

}  // namespace longnet::simt_test
