// CUDA twin of cross_entropy.h: a team of 32 threads owns a row of up to 1024 logits, a block of
// 512 a longer one. First pass: running maximum and sum of exponentials. Second pass, from the
// row's end back so that what was read last comes from cache: the gradient in place. Rows are read
// in packs of 4 where they are aligned to 16 bytes, whatever their width: a tail goes element by
// element.
//
// Reads the logits once or twice and writes them once. Each block leaves the sum of its rows'
// losses in double; a second kernel of one block adds the blocks' in a fixed order. Deterministic;
// no atomics. exp is __expf: of x - maximum, so its error is small against 1.
#include "core/context.h"
#include "kernels/cross_entropy/cross_entropy_cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/warp.h"

namespace longnet::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kAddThreads = 256;
constexpr int64_t kNarrow = 1024;  // widest row of a warp

/// Of a block's rows, in the order of rows.
struct Partial {
  double nats;
  int64_t count;
  int64_t bad_row;  // in this chunk; -1: none
};

struct RowSmem {
  float largest[kThreads / 32], sum[kThreads / 32];
  Partial row[kThreads / 32];
};

/// largest, sum of exp(x - largest) joined with another part's.
__device__ __forceinline__ void join(float* largest, float* sum, float other_largest,
                                     float other_sum) {
  const float top = other_largest > *largest ? other_largest : *largest;
  // Two parts without a finite logit: nothing to scale.
  const float base = top == -INFINITY ? 0.0f : top;
  *sum = *sum * __expf(*largest - base) + other_sum * __expf(other_largest - base);
  *largest = top;
}

/// The same with the values of v.
template <int kCount>
__device__ __forceinline__ void join_values(float* largest, float* sum, const float (&v)[kCount]) {
  float top = *largest;
  for (int j = 0; j < kCount; ++j) top = v[j] > top ? v[j] : top;
  const float base = top == -INFINITY ? 0.0f : top;
  if (top > *largest) *sum *= __expf(*largest - base);
  for (int j = 0; j < kCount; ++j) *sum += __expf(v[j] - base);
  *largest = top;
}

/// Of one row. target: its column, which is none for an ignored row; factor: scale / sum of
/// exponentials.
struct Gradient {
  int64_t target;
  float largest, factor, scale;
  bool counts;
};

/// Columns column, column + 1, ... in place: (softmax - one_hot(target)) scale.
template <int kCount>
__device__ __forceinline__ void write_gradient(const Elements& row, int64_t column,
                                               const Gradient& g) {
  float v[kCount] = {};
  if (g.counts) {
    load(v, row, column);
    for (int j = 0; j < kCount; ++j) {
      v[j] = __expf(v[j] - g.largest) * g.factor;
      if (column + j == g.target) v[j] -= g.scale;
    }
  }
  store(row, column, v);
}

/// stride: between rows.
template <int kPack, int kTeam>
__global__ void __launch_bounds__(kThreads)
    row_kernel(Partial* partials, float* logits, const int64_t* targets, int64_t rows,
               int64_t width, int64_t stride, float scale, bool with_gradient) {
  constexpr int kTeams = kThreads / kTeam;
  auto& sm = shared<RowSmem>();
  const int lane = threadIdx.x % kTeam, team = threadIdx.x / kTeam;
  const int64_t index = int64_t{blockIdx.x} * kTeams + team;
  const bool active = index < rows;
  const int64_t target = active ? targets[index] : -1;
  const bool counts = target >= 0 && target < width;
  const Elements row{logits + (active ? index : 0) * stride, false};
  const int64_t step = int64_t{kTeam} * kPack, begin = int64_t{lane} * kPack;
  const int64_t end = width / kPack * kPack, tail = end + lane;  // of packs; this thread's element
  const float at_target = counts ? logits[index * stride + target] : 0.0f;
  // 1. maximum and sum. A NaN is never the maximum but makes the sum NaN.
  float largest = -INFINITY, sum = 0;
  if (counts) {
    for (int64_t column = begin; column < end; column += step) {
      float v[kPack];
      load(v, row, column);
      join_values(&largest, &sum, v);
    }
    if (tail < width) {
      float v[1];
      load(v, row, tail);
      join_values(&largest, &sum, v);
    }
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const float other_largest = __shfl_xor_sync(kFullWarp, largest, distance);
    const float other_sum = __shfl_xor_sync(kFullWarp, sum, distance);
    join(&largest, &sum, other_largest, other_sum);
  }
  if constexpr (kTeam > 32) {
    if (threadIdx.x % 32 == 0) {
      sm.largest[threadIdx.x / 32] = largest;
      sm.sum[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    largest = sm.largest[0];
    sum = sm.sum[0];
    for (int w = 1; w < kThreads / 32; ++w) join(&largest, &sum, sm.largest[w], sm.sum[w]);
  }
  // 2. loss
  if (lane == 0) {
    const bool bad = target < -1 || target >= width;
    const double loss =
        counts ? log(static_cast<double>(sum)) + (static_cast<double>(largest) - at_target) : 0.0;
    sm.row[team] = {loss, counts ? 1 : 0, bad ? index : -1};
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    Partial total{0, 0, -1};
    for (int t = 0; t < kTeams; ++t) {
      total.nats += sm.row[t].nats;
      total.count += sm.row[t].count;
      if (total.bad_row < 0) total.bad_row = sm.row[t].bad_row;
    }
    partials[blockIdx.x] = total;
  }
  // 3. gradient; the barrier above lies between the reads of logits[target] and this
  if (!with_gradient || !active) return;
  const Gradient gradient{target, largest, counts ? scale / sum : 0.0f, scale, counts};
  if (tail < width) write_gradient<1>(row, tail, gradient);
  if (begin >= end) return;
  for (int64_t column = begin + (end - 1 - begin) / step * step; column >= begin; column -= step)
    write_gradient<kPack>(row, column, gradient);
}

struct AddSmem {
  Partial thread[kAddThreads];
};

/// One block. Thread t adds the blocks t, t + 256, ...; then thread 0 the threads' sums.
__global__ void __launch_bounds__(kAddThreads)
    add_kernel(CrossEntropySums* sums, const Partial* partials, const int64_t* targets,
               int64_t blocks, int64_t rows) {
  auto& sm = shared<AddSmem>();
  Partial own{0, 0, -1};
  const auto add = [](Partial& to, const Partial& from) {
    to.nats += from.nats;
    to.count += from.count;
    if (from.bad_row >= 0 && (to.bad_row < 0 || from.bad_row < to.bad_row))
      to.bad_row = from.bad_row;
  };
  for (int64_t block = threadIdx.x; block < blocks; block += kAddThreads) add(own, partials[block]);
  sm.thread[threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.x != 0) return;
  Partial total{0, 0, -1};
  for (int t = 0; t < kAddThreads; ++t) add(total, sm.thread[t]);
  if (total.bad_row >= 0 && sums->bad_row < 0) {
    sums->bad_row = sums->rows + total.bad_row;
    sums->bad_target = targets[total.bad_row];
  }
  sums->nats += total.nats;
  sums->count += total.count;
  sums->rows += rows;
}

__global__ void begin_kernel(CrossEntropySums* sums) { *sums = {0, 0, 0, -1, 0}; }

}  // namespace

int64_t cross_entropy_sums_bytes(int64_t max_rows) {
  return static_cast<int64_t>(sizeof(CrossEntropySums) + max_rows * sizeof(Partial));
}

void cross_entropy_begin(Context& context, void* sums) {
  launch(begin_kernel, 1, 1, 0, context.stream(), static_cast<CrossEntropySums*>(sums));
}

void cross_entropy(Context& context, void* sums, const TensorView& logits,
                   const TensorView& targets, float scale, bool with_gradient) {
  const int64_t rows = logits.shape[0], width = logits.shape[1];
  auto* total = static_cast<CrossEntropySums*>(sums);
  auto* partials = reinterpret_cast<Partial*>(total + 1);
  const int64_t teams = width <= kNarrow ? kThreads / 32 : 1;
  const unsigned blocks = blocks_for(rows, teams);
  const int64_t* target = targets.on_gpu<int64_t>();
  const auto start = [&](auto kernel) {
    launch(kernel, blocks, kThreads, sizeof(RowSmem), context.stream(), partials,
           logits.on_gpu<float>(), target, rows, width, logits.stride[0], scale, with_gradient);
  };
  if (pack_of({logits}, false) == 4)
    width <= kNarrow ? start(row_kernel<4, 32>) : start(row_kernel<4, kThreads>);
  else
    width <= kNarrow ? start(row_kernel<1, 32>) : start(row_kernel<1, kThreads>);
  launch(add_kernel, 1, kAddThreads, sizeof(AddSmem), context.stream(), total, partials, target,
         int64_t{blocks}, rows);
}

}  // namespace longnet::cuda
