// Every instruction that kernels name, one function each: mma.sync.m16n8k16 (bf16 in, f32 sums),
// ldmatrix.x4 (.trans), cp.async of 16 bytes, stmatrix.x4 (sm_90 and later), red.global.add.f32,
// ex2.approx, conversions to bf16, and two fences for the compiler. All inline PTX stands here. The
// emulator of tests/simt has a file of this name that models each of them.
//
// Registers of the matrix instructions, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix
// fragments for mma.m16n8k16"), two bf16 per 32-bit register, the lower column in the lower half:
//   A [16, 16]: a0 (g, 2t) a1 (g + 8, 2t) a2 (g, 2t + 8) a3 (g + 8, 2t + 8)
//   B [16, 8]:  b0 (2t, g) b1 (2t + 8, g), two rows of one column
//   C [16, 8]:  c0 c1 (g, 2t) and (g, 2t + 1), c2 c3 (g + 8, 2t) and (g + 8, 2t + 1)
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace longnet::cuda {

/// c += a b, whole warp: [16, 16] x [16, 8].
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// A place in shared memory, in one 32-bit register whose value the compiler cannot look into:
/// constants added to it become immediate offsets of the instructions that use it, instead of one
/// register each, computed ahead of a loop.
struct SharedAddress {
  uint32_t address;
  __device__ __forceinline__ SharedAddress operator+(int bytes) const {
    return {address + static_cast<uint32_t>(bytes)};
  }
};
__device__ __forceinline__ SharedAddress shared_address(const void* data) {
  uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(data));
  asm volatile("" : "+r"(address));
  return {address};
}

/// Four 8 x 8 matrices of bf16 from shared memory, whole warp: lane 8 m + i gives the address of
/// row i of matrix m (16-byte aligned); register m holds (row lane / 4, columns 2 (lane % 4) + {0,
/// 1}) of it, transposed: (rows 2 (lane % 4) + {0, 1}, column lane / 4).
template <bool transposed>
__device__ __forceinline__ void load_matrix(uint32_t (&r)[4], SharedAddress row) {
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row.address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row.address)
                 : "memory");
}
template <bool transposed>
__device__ __forceinline__ void load_matrix(uint32_t (&r)[4], const void* row) {
  load_matrix<transposed>(r, SharedAddress{static_cast<uint32_t>(__cvta_generic_to_shared(row))});
}

/// Whether store_matrix is there (sm_90 and later); else a value of load_matrix's layout is stored
/// by itself.
__device__ __forceinline__ constexpr bool has_store_matrix() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return true;
#else
  return false;
#endif
}
/// load_matrix<false> the other way.
__device__ __forceinline__ void store_matrix([[maybe_unused]] SharedAddress row,
                                             [[maybe_unused]] const uint32_t (&r)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(row.address),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
#endif
}

/// Starts copying 16 bytes into shared memory; both ends 16-byte aligned. Not valid: zeros are
/// written and nothing is read, source may lie anywhere.
__device__ __forceinline__ void copy_async_16(SharedAddress shared, const void* source,
                                              bool valid) {
  const int bytes = valid ? 16 : 0;  // of the source; zeros for the others
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared.address),
               "l"(__cvta_generic_to_global(source)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copy_async_16(void* shared, const void* source, bool valid) {
  copy_async_16(SharedAddress{static_cast<uint32_t>(__cvta_generic_to_shared(shared))}, source,
                valid);
}
/// Ends a group of copies of this thread.
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
/// Waits until at most kGroups of this thread's latest groups are under way. Other threads' copies
/// need a barrier after their wait.
template <int kGroups>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroups) : "memory");
}

/// Float to bfloat16 bits: nearest even; NaN stays NaN.
__device__ __forceinline__ uint16_t float_to_bf16(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
/// Two floats as a register of two bf16, `low` in the lower half; nearest even.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

/// 2^x within 2 units of the last place; results below 2^-126 are 0.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

/// to[0] += a, to[1] += b in global memory, whoever else adds. to: aligned to 8 bytes. These
/// additions flush subnormal sums to zero. (atomicAdd would first ask whether the address is in
/// shared memory.)
__device__ __forceinline__ void add_two(float* to, float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "f"(a),
               "f"(b)
               : "memory");
#else
  asm volatile("red.global.add.f32 [%0], %1;\n\tred.global.add.f32 [%0 + 4], %2;" ::"l"(
                   __cvta_generic_to_global(to)),
               "f"(a), "f"(b)
               : "memory");
#endif
}

/// x, of which the compiler knows nothing more: values that follow from it are computed where they
/// are needed, instead of being kept in registers through a whole loop.
__device__ __forceinline__ unsigned anew(unsigned x) {
  asm volatile("" : "+r"(x));
  return x;
}
/// No load or store is moved past this by the compiler: fewer of them wait in registers.
__device__ __forceinline__ void keep_order() { asm volatile("" ::: "memory"); }

}  // namespace longnet::cuda
