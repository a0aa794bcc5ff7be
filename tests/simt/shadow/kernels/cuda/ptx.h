// The emulator's twin of src/kernels/cuda/ptx.h, which says what each function means: host bodies
// that model the instructions' real register layouts, their checks and what they leave in memory.
#pragma once

#include <cmath>
#include <cstdint>

namespace longnet::cuda {

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
  return __uint_as_float(index ? pair & 0xffff0000u : pair << 16);
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

// The last lane reads and writes for all: not its own accesses to the race build.
template <bool transposed>
__attribute__((noinline, no_sanitize("thread"))) void load_matrix_warp(const simt::WarpCall& call) {
  for (int lane = 0; lane < 32; ++lane)
    simt::note_access(call, static_cast<LoadMatrix*>(call.lane[lane])->row, 16, false,
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

__attribute__((noinline, no_sanitize("thread"))) inline void store_matrix_warp(
    const simt::WarpCall& call) {
  for (int lane = 0; lane < 32; ++lane)
    simt::note_access(call, static_cast<StoreMatrix*>(call.lane[lane])->row, 16, true,
                      static_cast<unsigned>(lane));
  for (int lane = 0; lane < 32; ++lane)
    for (int matrix = 0; matrix < 4; ++matrix) {
      const uint32_t pair = static_cast<StoreMatrix*>(call.lane[lane])->value[matrix];
      uint16_t* const row = static_cast<StoreMatrix*>(call.lane[8 * matrix + lane / 4])->row;
      for (int i = 0; i < 2; ++i) row[lane % 4 * 2 + i] = static_cast<uint16_t>(pair >> (16 * i));
    }
}

}  // namespace emulated

inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     LN_CALL_SITE) {
  const uint32_t b[2] = {b0, b1};
  emulated::Mma x{a, b, c, {}};
  simt::warp_call("mma.m16n8k16", 0xffffffffu, &x, emulated::mma_warp, false, file, line);
  for (int i = 0; i < 4; ++i) c[i] = x.d[i];
}

struct SharedAddress {
  char* data;
  SharedAddress operator+(int bytes) const { return {data + bytes}; }
};
inline SharedAddress shared_address(const void* data) {
  return {static_cast<char*>(const_cast<void*>(data))};
}

template <bool transposed>
inline void load_matrix(uint32_t (&r)[4], const void* row, LN_CALL_SITE) {
  simt::check_alignment(row, 16, "ldmatrix", file, line);
  emulated::LoadMatrix x{static_cast<const uint16_t*>(row), {}};
  simt::warp_call(transposed ? "ldmatrix.x4.trans" : "ldmatrix.x4", 0xffffffffu, &x,
                  emulated::load_matrix_warp<transposed>, false, file, line);
  for (int i = 0; i < 4; ++i) r[i] = x.value[i];
}
template <bool transposed>
inline void load_matrix(uint32_t (&r)[4], SharedAddress row, LN_CALL_SITE) {
  load_matrix<transposed>(r, static_cast<const void*>(row.data), file, line);
}

inline bool has_store_matrix() { return simt::bug != simt::kNoStoreMatrix; }
inline void store_matrix(SharedAddress row, const uint32_t (&r)[4], LN_CALL_SITE) {
  simt::check_alignment(row.data, 16, "stmatrix", file, line);
  emulated::StoreMatrix x{reinterpret_cast<uint16_t*>(row.data), r};
  simt::warp_call("stmatrix.x4", 0xffffffffu, &x, emulated::store_matrix_warp, false, file, line);
}

inline void copy_async_16(void* shared, const void* source, bool valid, LN_CALL_SITE) {
  simt::copy_async(shared, source, valid, file, line);
}
inline void copy_async_16(SharedAddress shared, const void* source, bool valid, LN_CALL_SITE) {
  simt::copy_async(shared.data, source, valid, file, line);
}
inline void copy_async_commit() { simt::copy_async_commit(); }
template <int kGroups>
inline void copy_async_wait() {
  simt::copy_async_wait(kGroups);
}

inline uint16_t float_to_bf16(float x) {
  const unsigned bits = __float_as_uint(x);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline uint32_t pack_bf16(float low, float high) {
  return float_to_bf16(low) | static_cast<uint32_t>(float_to_bf16(high)) << 16;
}

inline float fast_exp2(float x) { return std::exp2(x); }

inline void add_two(float* to, float a, float b) {
  atomicAdd(to, a);
  atomicAdd(to + 1, b);
}

inline unsigned anew(unsigned x) { return x; }
inline void keep_order() {}

}  // namespace longnet::cuda
