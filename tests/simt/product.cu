// See product.h. Tiles of 64 x 64 x 32, four warps of 16 rows each, two stages of cp.async.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"
#include "simt/product.h"

namespace longnet::simt_test {
namespace {

using namespace longnet::cuda;

constexpr int kTile = 64, kDepth = 32, kThreads = 128;

struct Smem {
  alignas(16) uint16_t a[2][kTile][kDepth + 8];
  alignas(16) uint16_t b[2][kDepth][kTile + 8];
};

__device__ __forceinline__ void start_copy(Smem& sm, int stage, const uint16_t* a,
                                           const uint16_t* b, int n, int k, int k0) {
  for (int i = threadIdx.x; i < kTile * kDepth / 8; i += kThreads) {
    const int row = i / (kDepth / 8), d = i % (kDepth / 8) * 8;
    copy_async_16(&sm.a[stage][row][d], a + int64_t{row} * k + k0 + d, k0 + d < k);
    const int depth = i / (kTile / 8), column = i % (kTile / 8) * 8;
    copy_async_16(&sm.b[stage][depth][column], b + int64_t{k0 + depth} * n + column,
                  k0 + depth < k);
  }
  copy_async_commit();
}

__global__ void __launch_bounds__(kThreads)
    product_kernel(float* c, const uint16_t* a, const uint16_t* b, int n, int k) {
  auto& sm = shared<Smem>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  a += int64_t{blockIdx.y} * kTile * k;
  b += blockIdx.x * kTile;
  c += int64_t{blockIdx.y} * kTile * n + blockIdx.x * kTile;
  float sum[kTile / 8][4] = {};
  const int steps = (k + kDepth - 1) / kDepth;
  start_copy(sm, 0, a, b, n, k, 0);
  for (int step = 0; step < steps; ++step) {
    const int stage = step % 2;
    if (step + 1 < steps) {
      start_copy(sm, 1 - stage, a, b, n, k, (step + 1) * kDepth);
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    __syncthreads();
    for (int d = 0; d < kDepth; d += 16) {
      // Matrices 0, 1: rows 0-7 and 8-15 at column d; 2, 3: the same rows at d + 8.
      uint32_t x[4];
      load_matrix<false>(x, &sm.a[stage][warp * 16 + lane % 16][d + lane / 16 * 8]);
      for (int j = 0; j < kTile; j += 16) {
        // Transposed: 0, 1 are depths 0-7 and 8-15 of columns j.., 2, 3 of columns j + 8..
        uint32_t y[4];
        load_matrix<true>(y, &sm.b[stage][d + lane % 16][j + lane / 16 * 8]);
        mma_bf16(sum[j / 8], x, y[0], y[1]);
        mma_bf16(sum[j / 8 + 1], x, y[2], y[3]);
      }
    }
    __syncthreads();  // the stage is filled again in the next step but one
  }
  const int row = warp * 16 + lane / 4, column = lane % 4 * 2;
  for (int j = 0; j < kTile / 8; ++j)
    for (int i = 0; i < 4; ++i)
      c[int64_t{row + i / 2 * 8} * n + j * 8 + column + i % 2] = sum[j][i];
}

/// One warp writes a register of pairs per matrix.
__global__ void __launch_bounds__(32) store_matrix_kernel(uint16_t* to, const uint32_t* pairs) {
  struct Tile {
    alignas(16) uint16_t rows[32][16];  // with padding
  };
  auto& sm = shared<Tile>();
  const int lane = threadIdx.x;
  uint32_t x[4];
  for (int i = 0; i < 4; ++i) x[i] = pairs[4 * lane + i];
  if (has_store_matrix()) {
    store_matrix(shared_address(sm.rows[lane]), x);
  } else {
    for (int i = 0; i < 4; ++i)
      *reinterpret_cast<uint32_t*>(&sm.rows[8 * i + lane / 4][lane % 4 * 2]) = x[i];
  }
  __syncwarp();
  const int row = 31 - lane;  // another lane's
  for (int i = 0; i < 8; ++i) to[8 * row + i] = sm.rows[row][i];
}

}  // namespace

void store_matrix_rows(uint16_t* to, const uint32_t* pairs, void* stream) {
  launch(store_matrix_kernel, 1, 32, 32 * 16 * sizeof(uint16_t), stream, to, pairs);
}

void product_bf16(float* c, const uint16_t* a, const uint16_t* b, int m, int n, int k,
                  void* stream) {
  launch(product_kernel, dim3(n / kTile, m / kTile), kThreads, sizeof(Smem), stream, c, a, b, n, k);
}

}  // namespace longnet::simt_test
