// Tensor-core and asynchronous-copy instructions common to sm_80 and later, one function each:
// mma.sync.m16n8k16 (bf16 in, f32 sums), ldmatrix.x4 (.trans), cp.async of 16 bytes; and
// stmatrix.x4, which sm_90 has.
//
// Each has a device body (PTX) and a host body for the emulator that models the instruction's real
// register layout. With g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix fragments for
// mma.m16n8k16"), two bf16 per 32-bit register, the lower column in the lower half:
//   A [16, 16]: a0 (g, 2t) a1 (g + 8, 2t) a2 (g, 2t + 8) a3 (g + 8, 2t + 8)
//   B [16, 8]:  b0 (2t, g) b1 (2t + 8, g), two rows of one column
//   C [16, 8]:  c0 c1 (g, 2t) and (g, 2t + 1), c2 c3 (g + 8, 2t) and (g + 8, 2t + 1)
#pragma once

#include <cstdint>

#include "kernels/cuda/simt.h"

namespace longnet::cuda {

#if defined(LN_SIMT)

namespace emulated {

struct Mma {
  const uint32_t *a, *b;
  const float* c;
  float d[4];
};
struct LoadMatrix {
  const uint16_t* row;
  uint32_t value[4];
};
struct StoreMatrix {
  uint16_t* row;
  const uint32_t* value;
};

inline float half_of(uint32_t pair, int index) {
  return bf16_to_float(static_cast<uint16_t>(index ? pair >> 16 : pair));
}

inline void mma_warp(const simt::WarpCall& call) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& x = *static_cast<Mma*>(call.lane[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2; ++i) {
      a[g][2 * t + i] = half_of(x.a[0], i);
      a[g + 8][2 * t + i] = half_of(x.a[1], i);
      a[g][2 * t + 8 + i] = half_of(x.a[2], i);
      a[g + 8][2 * t + 8 + i] = half_of(x.a[3], i);
      b[2 * t + i][g] = half_of(x.b[0], i);
      b[2 * t + 8 + i][g] = half_of(x.b[1], i);
    }
  }
  float product[16][8] = {};
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) product[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < 32; ++lane) {
    Mma& x = *static_cast<Mma*>(call.lane[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) x.d[i] = x.c[i] + product[g + i / 2 * 8][2 * t + i % 2];
  }
}

template <bool transposed>
void load_matrix_warp(const simt::WarpCall& call) {
  for (int lane = 0; lane < 32; ++lane)
    simt::note_read(static_cast<LoadMatrix*>(call.lane[lane])->row, 16,
                    static_cast<unsigned>(lane));
  for (int lane = 0; lane < 32; ++lane)
    for (int matrix = 0; matrix < 4; ++matrix) {
      const int g = lane / 4, t = lane % 4;
      uint32_t pair = 0;
      for (int i = 0; i < 2; ++i) {
        const int row = transposed ? 2 * t + i : g, column = transposed ? g : 2 * t + i;
        const uint16_t value = static_cast<LoadMatrix*>(call.lane[8 * matrix + row])->row[column];
        pair |= uint32_t{value} << (16 * i);
      }
      static_cast<LoadMatrix*>(call.lane[lane])->value[matrix] = pair;
    }
}

// The last lane writes for all: not its own accesses to the race build.
__attribute__((noinline, no_sanitize("thread"))) inline void store_matrix_warp(
    const simt::WarpCall& call) {
  for (int lane = 0; lane < 32; ++lane)
    simt::note_write(static_cast<StoreMatrix*>(call.lane[lane])->row, 16,
                     static_cast<unsigned>(lane));
  for (int lane = 0; lane < 32; ++lane)
    for (int matrix = 0; matrix < 4; ++matrix) {
      const uint32_t pair = static_cast<StoreMatrix*>(call.lane[lane])->value[matrix];
      uint16_t* const row = static_cast<StoreMatrix*>(call.lane[8 * matrix + lane / 4])->row;
      for (int i = 0; i < 2; ++i) row[lane % 4 * 2 + i] = static_cast<uint16_t>(pair >> (16 * i));
    }
}

}  // namespace emulated

/// c += a b, whole warp.
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     LN_CALL_SITE) {
  const uint32_t b[2] = {b0, b1};
  emulated::Mma x{a, b, c, {}};
  simt::warp_call("mma.m16n8k16", kFullWarp, &x, emulated::mma_warp, false, file, line);
  for (int i = 0; i < 4; ++i) c[i] = x.d[i];
}

/// A place in shared memory, in one 32-bit register whose value the compiler cannot look into:
/// constants added to it become immediate offsets of the instructions that use it, instead of one
/// register each, computed ahead of a loop.
struct SharedAddress {
  char* data;
  SharedAddress operator+(int bytes) const { return {data + bytes}; }
};
inline SharedAddress shared_address(const void* data) {
  return {static_cast<char*>(const_cast<void*>(data))};
}

/// Four 8 x 8 matrices of bf16 from shared memory, whole warp: lane 8 m + i gives the address of
/// row i of matrix m (16-byte aligned); register m holds (row lane / 4, columns 2 (lane % 4) + {0,
/// 1}) of it, transposed: (rows 2 (lane % 4) + {0, 1}, column lane / 4).
template <bool transposed>
inline void load_matrix(uint32_t (&r)[4], const void* row, LN_CALL_SITE) {
  simt::check_alignment(row, 16, "ldmatrix", file, line);
  emulated::LoadMatrix x{static_cast<const uint16_t*>(row), {}};
  simt::warp_call(transposed ? "ldmatrix.x4.trans" : "ldmatrix.x4", kFullWarp, &x,
                  emulated::load_matrix_warp<transposed>, false, file, line);
  for (int i = 0; i < 4; ++i) r[i] = x.value[i];
}
template <bool transposed>
inline void load_matrix(uint32_t (&r)[4], SharedAddress row, LN_CALL_SITE) {
  load_matrix<transposed>(r, static_cast<const void*>(row.data), file, line);
}

/// Whether store_matrix is there; else a value of load_matrix's layout is stored by itself. (For
/// tests, 25 is a GPU without.)
inline bool has_store_matrix() { return LN_BUG != 25; }
/// load_matrix<false> the other way.
inline void store_matrix(SharedAddress row, const uint32_t (&r)[4], LN_CALL_SITE) {
  simt::check_alignment(row.data, 16, "stmatrix", file, line);
  emulated::StoreMatrix x{reinterpret_cast<uint16_t*>(row.data), r};
  simt::warp_call("stmatrix.x4", kFullWarp, &x, emulated::store_matrix_warp, false, file, line);
}

/// Starts copying 16 bytes into shared memory; both ends 16-byte aligned. Not valid: zeros are
/// written and nothing is read, source may lie anywhere.
inline void copy_async_16(void* shared, const void* source, bool valid, LN_CALL_SITE) {
  simt::copy_async(shared, source, valid, file, line);
}
inline void copy_async_16(SharedAddress shared, const void* source, bool valid, LN_CALL_SITE) {
  simt::copy_async(shared.data, source, valid, file, line);
}
/// Ends a group of copies of this thread.
inline void copy_async_commit() { simt::copy_async_commit(); }
/// Waits until at most kGroups of this thread's latest groups are under way. Other threads' copies
/// need a barrier after their wait.
template <int kGroups>
inline void copy_async_wait() {
  simt::copy_async_wait(kGroups);
}

#else

__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

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

__device__ __forceinline__ constexpr bool has_store_matrix() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return true;
#else
  return false;
#endif
}
__device__ __forceinline__ void store_matrix([[maybe_unused]] SharedAddress row,
                                             [[maybe_unused]] const uint32_t (&r)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(row.address),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
#endif
}

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
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int kGroups>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroups) : "memory");
}

#endif

/// Two floats as a register of two bf16, `low` in the lower half; nearest even.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#if defined(LN_SIMT)
  return float_to_bf16(low) | static_cast<uint32_t>(float_to_bf16(high)) << 16;
#else
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

}  // namespace longnet::cuda
