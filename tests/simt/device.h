// CUDA's device language for g++: what a kernel file needs beyond C++, with bodies that run under
// the emulator of emulator.cpp. Included before every *_cuda.cu of the simt tests (-include), which
// are compiled as C++. Only what the kernels of this project use is here; weak memory, fast-math
// instructions, occupancy and bank conflicts are not modelled.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#include "simt/emulator.h"

namespace longnet::simt {

/// Where the running fiber is; set at every switch.
struct Coordinates {
  dim3 thread, block, block_dim, grid_dim;
};
extern Coordinates at;

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  void (*body)(void*);  // runs one thread of the kernel
  void* arguments;
};
/// Runs all blocks, one after the other. Throws std::runtime_error with every finding of the
/// launch.
void run(const Launch& launch);

/// Carries out the copies and other work that wait on a stream (device_runtime_emulated.h,
/// stream_work.h): launches come after them.
void finish_copies(void* stream);

/// Number of the planted defect that is on (defects/README.md), or of a lack of the machine
/// (emulator.h); 0: none. Tests set it.
extern int bug;

/// The block's dynamic shared memory; bytes: what the kernel wants, checked against the launch.
void* shared_memory(size_t bytes, const char* file, int line);

void barrier(const char* file, int line);
/// Rendezvous of the lanes in mask. Each leaves `argument`; the last one runs f(lanes' arguments).
struct WarpCall {
  uint32_t mask;
  const char* file;  // of the caller
  int line;
  void* lane[32];
};
void warp_call(const char* name, uint32_t mask, void* argument, void (*f)(const WarpCall&),
               bool orders_memory, const char* file, int line);
unsigned lane_index();

/// cp.async of 16 bytes, of zeros if not valid. Poisons the destination until the thread's wait.
void copy_async(void* shared, const void* source, bool valid, const char* file, int line);
void copy_async_commit();
void copy_async_wait(int groups_left);

/// An access that a modelled instruction makes for a lane (race build; else nothing happens).
void note_access(const WarpCall& call, const void* address, size_t bytes, bool write,
                 unsigned lane);
/// Refuses addresses that are not aligned as the instruction wants them.
void check_alignment(const void* address, size_t bytes, const char* what, const char* file,
                     int line);

template <typename T>
struct Shuffle {
  T value;
  unsigned source;  // lane
  T result;
};
template <typename T>
void shuffle_lanes(const WarpCall& call) {
  for (unsigned lane = 0; lane < 32; ++lane)
    if (call.mask >> lane & 1) {
      auto* mine = static_cast<Shuffle<T>*>(call.lane[lane]);
      // A source outside the mask is undefined: poison what can be poisoned.
      if (call.mask >> mine->source & 1)
        mine->result = static_cast<Shuffle<T>*>(call.lane[mine->source])->value;
      else
        std::memset(&mine->result, 0xff, sizeof(T));
    }
}
template <typename T>
T shuffle(uint32_t mask, T value, unsigned source, const char* name, const char* file, int line) {
  Shuffle<T> s{value, source, value};
  warp_call(name, mask, &s, shuffle_lanes<T>, false, file, line);
  return s.result;
}

/// Kernels start here and nowhere else (src/kernels/cuda/launch.h has the device's twin).
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Args&&... args) {
  struct Call {
    void (*kernel)(Params...);
    std::tuple<std::decay_t<Params>...> values;
  } call{kernel, {std::forward<Args>(args)...}};
  run({grid, block, shared_bytes,
       [](void* pointer) {
         auto* c = static_cast<Call*>(pointer);
         std::apply(c->kernel, c->values);
       },
       &call});
}

}  // namespace longnet::simt

#define threadIdx (::longnet::simt::at.thread)
#define blockIdx (::longnet::simt::at.block)
#define blockDim (::longnet::simt::at.block_dim)
#define gridDim (::longnet::simt::at.grid_dim)

#define LN_CALL_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(LN_CALL_SITE) { ::longnet::simt::barrier(file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, LN_CALL_SITE) {
  ::longnet::simt::warp_call(
      "__syncwarp", mask, nullptr, [](const ::longnet::simt::WarpCall&) {}, true, file, line);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, LN_CALL_SITE) {
  const unsigned lane = ::longnet::simt::lane_index();
  return ::longnet::simt::shuffle(
      mask, value, (lane & ~(unsigned(width) - 1)) | (unsigned(source) & (unsigned(width) - 1)),
      "__shfl_sync", file, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, LN_CALL_SITE) {
  const unsigned lane = ::longnet::simt::lane_index(), other = lane ^ unsigned(lane_mask);
  const bool inside = other / unsigned(width) == lane / unsigned(width);
  return ::longnet::simt::shuffle(mask, value, inside ? other : lane, "__shfl_xor_sync", file,
                                  line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, LN_CALL_SITE) {
  const unsigned lane = ::longnet::simt::lane_index(), other = lane + delta;
  const bool inside = other / unsigned(width) == lane / unsigned(width);
  return ::longnet::simt::shuffle(mask, value, inside ? other : lane, "__shfl_down_sync", file,
                                  line);
}
struct SimtVote {
  int predicate;
  unsigned result;
};
inline unsigned __ballot_sync(unsigned mask, int predicate, LN_CALL_SITE) {
  SimtVote vote{predicate, 0};
  ::longnet::simt::warp_call(
      "__ballot_sync", mask, &vote,
      [](const ::longnet::simt::WarpCall& call) {
        unsigned result = 0;
        for (unsigned lane = 0; lane < 32; ++lane)
          if (call.mask >> lane & 1 && static_cast<SimtVote*>(call.lane[lane])->predicate)
            result |= 1u << lane;
        for (unsigned lane = 0; lane < 32; ++lane)
          if (call.mask >> lane & 1) static_cast<SimtVote*>(call.lane[lane])->result = result;
      },
      false, file, line);
  return vote.result;
}

// One fiber runs at a time, so a plain read-modify-write is atomic; neither inlined nor
// instrumented, so that the race build sees no ordinary access.
template <typename T>
__attribute__((noinline, no_sanitize("thread"))) T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <typename T>
__attribute__((noinline, no_sanitize("thread"))) T atomicMin(T* address, T value) {
  const T old = *address;
  if (value < old) *address = value;
  return old;
}
template <typename T>
__attribute__((noinline, no_sanitize("thread"))) T atomicMax(T* address, T value) {
  const T old = *address;
  if (old < value) *address = value;
  return old;
}

template <typename T>
__forceinline__ T __ldg(const T* address) {
  return *address;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
