// The owner's sum of a ragged reduce-scatter: values [n] and staging [size - 1][n], all f32.
//
// A thread owns one element and adds the members' parts in rank order, its own in its place, so the
// bits equal the mpi transport's. Reads size x n x 4 bytes, writes n x 4, and is limited by that.
// No shared memory. Deterministic.
#include <algorithm>

#include "dist/communicator_nccl.h"
#include "kernels/cuda/launch.h"

namespace longnet::internal {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;

__global__ void add_parts(float* values, const float* staging, int rank, int size, int64_t n) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step) {
    float sum = rank == 0 ? values[i] : staging[i];
    for (int member = 1; member < size; ++member)
      sum += member == rank ? values[i] : staging[(member < rank ? member : member - 1) * n + i];
    values[i] = sum;
  }
}

}  // namespace

void add_in_rank_order(device_runtime::Stream stream, float* values, const float* staging, int rank,
                       int size, int64_t n) {
  if (n == 0 || size == 1) return;
  const int64_t blocks = std::min(kMostBlocks, (n + kThreads - 1) / kThreads);
  cuda::launch(add_parts, static_cast<unsigned>(blocks), kThreads, 0, stream, values, staging, rank,
               size, n);
}

}  // namespace longnet::internal
