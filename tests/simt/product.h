// A small matrix product of two bf16 matrices through the wrappers of kernels/cuda/ptx.h, and
// matrices stored by one of them: what the emulator and a GPU are both held to.
#pragma once

#include <cstdint>

namespace longnet::simt_test {

/// c [m, n] f32 = a [m, k] b [k, n], bf16 bits, row-major. m, n: multiples of 64; k: of 8.
void product_bf16(float* c, const uint16_t* a, const uint16_t* b, int m, int n, int k,
                  void* stream);

/// to [4 matrices, 8, 8] of bf16 bits from pairs [32 lanes, 4 matrices], stored by store_matrix.
void store_matrix_rows(uint16_t* to, const uint32_t* pairs, void* stream);

}  // namespace longnet::simt_test
