// LayerNorm of rows that a kernel makes as it goes: what layer_norm_cuda.cu and activation_cuda.cu
// share. A team of 8, 32 or 256 threads of a block of 256 owns a row; thread `lane` of it owns
// packs lane, lane + team, ... of the row in every pass, so nothing but sums passes between
// threads.
//
// Forward: the row's first 24 floats of a thread stay in registers, the rest is made again in the
// later passes. Backward: two passes; the block's rows come from the first-level cache in the
// second. Weight gradients: every block owns a fixed run of rows and sums its columns in shared
// memory (in the partial sums themselves where a row does not fit); the blocks' sums are then added
// in order.
#pragma once

#include "core/context.h"
#include "core/device_runtime.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/warp.h"
#include "kernels/linear/linear_cublaslt.h"

namespace longnet::cuda {

// Kernels are bounded to 2 such blocks a processor: with the default, the compiler for sm_80
// spills.
inline constexpr int kNormThreads = 256;
inline constexpr int kHeldFloats = 24;  // of a row, in a thread's registers
inline constexpr int64_t kParts = 512;  // at most so many runs of rows: 3 or 4 blocks on each of an
                                        // H100's 132 processors, whatever the GPU
inline constexpr int64_t kSharedSums = 160 * 1024;  // bytes of column sums a block may keep shared

struct NormSmem {
  float warp[2][kNormThreads / 32];
  /// Column sums [teams, 2, W] in what a launch adds behind this.
  __device__ float* sums() { return reinterpret_cast<float*>(this + 1); }
};

/// x[i] = its sum over the team, in every thread of it; one order. Whole blocks must call it.
template <int kTeam, int kCount>
__device__ __forceinline__ void team_sum(float (&x)[kCount]) {
  static_assert(kTeam <= 32 || kTeam == kNormThreads);
#pragma unroll
  for (int step = (kTeam < 32 ? kTeam : 32) / 2; step > 0; step /= 2)
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] += __shfl_xor_sync(kFullWarp, x[i], step);
  if constexpr (kTeam > 32) {
    auto& sm = shared<NormSmem>();
    if (threadIdx.x % 32 == 0)
      for (int i = 0; i < kCount; ++i) sm.warp[i][threadIdx.x / 32] = x[i];
    __syncthreads();
    for (int i = 0; i < kCount; ++i) {
      x[i] = 0;
      for (int w = 0; w < kNormThreads / 32; ++w) x[i] += sm.warp[i][w];
    }
    __syncthreads();
  }
}

/// One row forward. source.first(column, v) makes a pack, source.again(column, v) makes it once
/// more; sink(column, v) takes the normed pack. mean, rstd: of the row. active: false for the
/// threads of a team that has no row; they take part in the sums.
template <int kPack, int kTeam, typename Source, typename Sink>
__device__ __forceinline__ void normalise_row(float* mean, float* rstd, const float* weight,
                                              const float* bias, float eps, int64_t width,
                                              bool active, const Source& source, const Sink& sink) {
  constexpr int kHeld = kHeldFloats / kPack;
  const int lane = threadIdx.x % kTeam;
  const int64_t end = active ? width : 0, step = int64_t{kTeam} * kPack;
  const int64_t begin = int64_t{lane} * kPack, rest = begin + kHeld * step;
  const float inverse_width = 1.0f / static_cast<float>(width);
  float held[kHeld][kPack];
  // 1. a first mean
  float total[1] = {0};
#pragma unroll
  for (int k = 0; k < kHeld; ++k)
    if (begin + k * step < end) {
      source.first(begin + k * step, held[k]);
      for (int j = 0; j < kPack; ++j) total[0] += held[k][j];
    }
  for (int64_t column = rest; column < end; column += step) {
    float v[kPack];
    source.first(column, v);
    for (int j = 0; j < kPack; ++j) total[0] += v[j];
  }
  team_sum<kTeam>(total);
  const float middle = total[0] * inverse_width;
  // 2. deviations from it: their average corrects the mean (a row far from zero keeps its digits)
  float moments[2] = {0, 0};
  const auto add = [&](const float(&v)[kPack]) {
    for (int j = 0; j < kPack; ++j) {
      const float d = v[j] - middle;
      moments[0] += d;
      moments[1] += d * d;
    }
  };
#pragma unroll
  for (int k = 0; k < kHeld; ++k)
    if (begin + k * step < end) add(held[k]);
  for (int64_t column = rest; column < end; column += step) {
    float v[kPack];
    source.again(column, v);
    add(v);
  }
  team_sum<kTeam>(moments);
  const float shift = moments[0] * inverse_width, mean_of_row = middle + shift;
  const float variance = fmaxf(moments[1] * inverse_width - shift * shift, 0.0f);
  const float scale = 1.0f / sqrtf(variance + eps);
  // 3. output
  const Elements weights{const_cast<float*>(weight), false},
      biases{const_cast<float*>(bias), false};
  const auto put = [&](int64_t column, const float(&v)[kPack]) {
    float w[kPack], b[kPack], y[kPack];
    load(w, weights, column);
    load(b, biases, column);
    for (int j = 0; j < kPack; ++j) y[j] = (v[j] - mean_of_row) * scale * w[j] + b[j];
    sink(column, y);
  };
#pragma unroll
  for (int k = 0; k < kHeld; ++k)
    if (begin + k * step < end) put(begin + k * step, held[k]);
  for (int64_t column = rest; column < end; column += step) {
    float v[kPack];
    source.again(column, v);
    put(column, v);
  }
  if (active && lane == 0) {
    *mean = mean_of_row;
    // fmaxf drops a NaN.
    *rstd = moments[1] == moments[1] ? scale : moments[1];
  }
}

/// A block's rows of the backward: [rows part / parts, rows (part + 1) / parts). make(row) gives a
/// row: row.load(column, grad, value) the gradient of the normed output and the norm's input;
/// row.write(column, grad_value) takes the gradient of the latter, given by the same thread after
/// its load of the same column. partials: [parts, 2, W].
template <int kPack, int kTeam, typename Make>
__device__ __forceinline__ void norm_rows_backward(float* partials, const float* mean,
                                                   const float* rstd, const float* weight,
                                                   int64_t rows, int64_t width, bool shared_sums,
                                                   const Make& make) {
  constexpr int kTeams = kNormThreads / kTeam;
  auto& sm = shared<NormSmem>();
  const int lane = threadIdx.x % kTeam, team = threadIdx.x / kTeam;
  const int64_t part = blockIdx.x, parts = gridDim.x;
  const int64_t step = int64_t{kTeam} * kPack, begin = int64_t{lane} * kPack;
  const float inverse_width = 1.0f / static_cast<float>(width);
  const Elements weights{const_cast<float*>(weight), false};
  float* out = partials + part * 2 * width;
  float* sum_weight = shared_sums ? sm.sums() + team * 2 * width : out;
  const Elements weight_sums{sum_weight, false}, bias_sums{sum_weight + width, false};
  for (int64_t column = begin; column < width; column += step) {
    const float zero[kPack] = {};
    store(weight_sums, column, zero);
    store(bias_sums, column, zero);
  }
  const int64_t last = rows * (part + 1) / parts;
  for (int64_t first = rows * part / parts; first < last; first += kTeams) {
    const int64_t index = first + team;
    const bool active = index < last;
    const int64_t end = active ? width : 0;
    const auto row = make(active ? index : first);
    const float middle = active ? mean[index] : 0.0f, scale = active ? rstd[index] : 0.0f;
    // y = n w + b, n = (x - mean) rstd:  dn = dy w,  dx = rstd (dn - avg(dn) - n avg(dn n))
    float sums[2] = {0, 0};
    for (int64_t column = begin; column < end; column += step) {
      float grad[kPack], value[kPack], w[kPack];
      row.load(column, grad, value);
      load(w, weights, column);
      for (int j = 0; j < kPack; ++j) {
        const float grad_n = grad[j] * w[j];
        sums[0] += grad_n;
        sums[1] += grad_n * (value[j] - middle) * scale;
      }
    }
    team_sum<kTeam>(sums);
    const float average = sums[0] * inverse_width, dot = sums[1] * inverse_width;
    for (int64_t column = begin; column < end; column += step) {
      float grad[kPack], value[kPack], w[kPack], grad_value[kPack];
      float grad_weight[kPack], grad_bias[kPack];
      row.load(column, grad, value);
      load(w, weights, column);
      load(grad_weight, weight_sums, column);
      load(grad_bias, bias_sums, column);
      for (int j = 0; j < kPack; ++j) {
        const float n = (value[j] - middle) * scale;
        grad_weight[j] += grad[j] * n;
        grad_bias[j] += grad[j];
        grad_value[j] = scale * (grad[j] * w[j] - average - n * dot);
      }
      store(weight_sums, column, grad_weight);
      store(bias_sums, column, grad_bias);
      row.write(column, grad_value);
    }
  }
  if (!shared_sums) return;
  if constexpr (kTeams == 1) {
    for (int64_t column = begin; column < width; column += step) {
      float sums[kPack];
      load(sums, weight_sums, column);
      store({out, false}, column, sums);
      load(sums, bias_sums, column);
      store({out + width, false}, column, sums);
    }
  } else {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < 2 * width; i += kNormThreads) {
      float sum = 0;
      for (int t = 0; t < kTeams; ++t) sum += sm.sums()[t * 2 * width + i];
      out[i] = sum;
    }
  }
}

inline int64_t norm_partial_bytes(int64_t width) {
  return kParts * 2 * width * static_cast<int64_t>(sizeof(float));
}

/// f(team) as an integral constant: 8 threads where one of them then holds the whole of its share,
/// else a warp, else the block.
template <typename F>
void with_team(int64_t width, int pack, F f) {
  const int64_t held = kHeldFloats / pack * pack;
  if (width <= 8 * held)
    f(std::integral_constant<int, 8>{});
  else if (width <= 32 * held)
    f(std::integral_constant<int, 32>{});
  else
    f(std::integral_constant<int, kNormThreads>{});
}

/// The pack of the rows, unless the f32 vectors beside them (which packs of 8 read in two halves)
/// are not aligned.
inline int pack_beside(int pack, std::initializer_list<TensorView> vectors) {
  return pack_of(vectors) == 1 ? 1 : pack;
}

/// How norm_rows_backward is launched.
struct NormBackwardLaunch {
  unsigned blocks;
  size_t shared_bytes;
  bool shared_sums;
  NormBackwardLaunch(int64_t rows, int64_t width, int team) {
    const int64_t teams = kNormThreads / team;
    const int64_t bytes = teams * 2 * width * static_cast<int64_t>(sizeof(float));
    blocks = static_cast<unsigned>(std::min(kParts, (rows + teams - 1) / teams));
    shared_sums = bytes <= std::min(kSharedSums, device_runtime::shared_memory_per_block() -
                                                     static_cast<int64_t>(sizeof(NormSmem)));
    LN_CHECK(shared_sums || teams == 1, "rows of {} for teams of {}", width, team);
    shared_bytes = sizeof(NormSmem) + static_cast<size_t>(shared_sums ? bytes : 0);
  }
};

/// grad_weight, grad_bias [W] += the blocks' sums, in order.
inline void add_norm_partials(Context& context, float* grad_weight, float* grad_bias,
                              const float* partials, int64_t parts, int64_t width) {
  cublaslt::add_column_sums(context.stream(), grad_weight, nullptr, partials, DType::kF32, parts,
                            width, 2 * width, 1);
  cublaslt::add_column_sums(context.stream(), grad_bias, nullptr, partials + width, DType::kF32,
                            parts, width, 2 * width, 1);
}

}  // namespace longnet::cuda
