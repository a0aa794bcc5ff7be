// CUDA twin of attention.h: any head dimension from 8 to 256, forward and backward. Inputs are f32
// or bf16 and become float32 while they are read; everything after that is float32.
//
// The plain kernels: tiles of 32 query and 32 key rows in shared memory, four threads per row,
// float multiply-adds. Rows are read where they lie (dilated, strided, gathered) and rotated while
// they are read, from tables of double-precision angles of p = 256 a + b. A block owns the rows it
// writes, so there are no atomics and results do not depend on timing. It does not use tensor
// cores.
#include <algorithm>
#include <cmath>

#include "core/context.h"
#include "core/device_runtime.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_tables_cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/numbers.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/warp.h"
#include "kernels/fill/fill_cuda.h"

namespace longnet::cuda {
namespace {

using namespace attention;

constexpr int kThreads = 128;
constexpr int kTile = 32;                // rows of a tile, of queries and of keys
constexpr int kQuad = kThreads / kTile;  // threads per row, neighbours in one warp
constexpr int kPerThread = kTile / kQuad;
constexpr int kPackHeads = 32;  // heads per launch of pack and unpack

// --- 1. rows
// ---------------------------------------------------------------------------------------

/// tile[row] = rows [0, count) of `rows`, rotated if `rotate`; zeros behind head_dim and count. Row
/// i has position `position` + i dilation.
template <int kD>
__device__ __forceinline__ void load_tile(float (*tile)[kD + 4], Input rows, int64_t stride,
                                          int count, int head_dim, const RotaryParts& rotary,
                                          bool rotate, int set, int64_t position,
                                          int64_t dilation) {
  constexpr int kPairs = kD / 2;
  for (int i = threadIdx.x; i < kTile * kPairs; i += kThreads) {
    const int row = i / kPairs, pair = i % kPairs, d = 2 * pair;
    float a = 0, b = 0;
    if (row < count && d < head_dim) {
      const Input from = rows + (row * stride + d);
      a = from[0];
      if (d + 1 < head_dim) b = from[1];
      if (rotate) {
        const float2 t = turn_of(rotary, set, position + row * dilation, pair);
        const float c = a;
        a = c * t.x - b * t.y;
        b = b * t.x + c * t.y;
      }
    }
    *reinterpret_cast<float2*>(&tile[row][d]) = make_float2(a, b);
  }
}

/// sum[k] = <a, b[quad + kQuad k]> of padded rows.
template <int kD>
__device__ __forceinline__ void dot_rows(float (&sum)[kPerThread], const float* a,
                                         const float (*b)[kD + 4], int quad) {
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) sum[k] = 0;
#pragma unroll 2
  for (int d = 0; d < kD; d += 4) {
    const float4 x = *reinterpret_cast<const float4*>(a + d);
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      const float4 y = *reinterpret_cast<const float4*>(&b[quad + kQuad * k][d]);
      sum[k] += x.x * y.x;
      sum[k] += x.y * y.y;
      sum[k] += x.z * y.z;
      sum[k] += x.w * y.w;
    }
  }
}

/// accumulator += weight[i] row_i, i in [0, count); a thread holds elements 8 k + 2 quad + {0, 1}.
template <int kD>
__device__ __forceinline__ void add_rows(float (&accumulator)[kD / 4], const float* weight,
                                         const float (*rows)[kD + 4], int count, int quad) {
  for (int i = 0; i < count; ++i) {
    const float w = weight[i];
#pragma unroll
    for (int k = 0; k < kD / 8; ++k) {
      const float2 v = *reinterpret_cast<const float2*>(&rows[i][8 * k + 2 * quad]);
      accumulator[2 * k] += w * v.x;
      accumulator[2 * k + 1] += w * v.y;
    }
  }
}

/// to[0, head_dim) += factor accumulator, rotated back if `rotate`.
template <int kD>
__device__ __forceinline__ void add_gradient(float* to, const float (&accumulator)[kD / 4],
                                             float factor, int head_dim, int quad,
                                             const RotaryParts& rotary, bool rotate, int set,
                                             int64_t position) {
#pragma unroll
  for (int k = 0; k < kD / 8; ++k) {
    const int d = 8 * k + 2 * quad;
    if (d >= head_dim) continue;
    float a = factor * accumulator[2 * k], b = factor * accumulator[2 * k + 1];
    if (rotate) {
      const float2 t = turn_of(rotary, set, position, d / 2);
      const float c = a;
      a = c * t.x + b * t.y;
      b = b * t.x - c * t.y;
    }
    to[d] += a;
    if (d + 1 < head_dim) to[d + 1] += b;
  }
}

/// What a query row may see, beside causality.
struct Window {
  int64_t first, last;  // global tokens, inclusive
};
__device__ __forceinline__ Window window_of(const Common& p, int64_t b, int64_t slot) {
  Window w{INT64_MIN, INT64_MAX};
  if (p.first_visible != nullptr)
    w.first = p.first_visible[b * p.first_batch + slot * p.first_token];
  if (p.last_visible != nullptr) w.last = p.last_visible[b * p.last_batch + slot * p.last_token];
  return w;
}

__device__ __forceinline__ bool sees(const Common& p, const TaskHead& task, const Window& window,
                                     int64_t query_row, int64_t key_row) {
  const int64_t token = task.token + key_row * p.dilation;
  const bool behind = key_row <= query_row;
  return (!p.causal || behind) && window.first <= token && token <= window.last;
}

// --- 2. forward
// ------------------------------------------------------------------------------------

template <int kD>
struct ForwardShared {
  float query[kTile][kD + 4], key[kTile][kD + 4], value[kTile][kD + 4];
  float weight[kTile][kTile + 4];
};

/// Grid: (items, B). A block owns 32 query rows of one head and goes through all their keys.
template <int kD>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(Common p) {
  auto& sm = shared<ForwardShared<kD>>();
  const Item item = p.items[blockIdx.x];
  const TaskHead& task = p.tasks[item.index];
  const int64_t b = blockIdx.y, begin = int64_t{item.tile} * kTile;
  const int rows = static_cast<int>(task.count - begin < kTile ? task.count - begin : kTile);
  const int row = threadIdx.x / kQuad, quad = threadIdx.x % kQuad;
  const int64_t query_row = task.first + begin + row;
  const int64_t slot = task.slot + (begin + row) * task.step;
  const bool valid = row < rows;

  load_tile<kD>(sm.query, task.query + (b * task.query_batch + begin * task.query_row),
                task.query_row, rows, p.head_dim, p.rotary, task.rotate != 0, 0,
                task.position + (task.first + begin) * p.dilation, p.dilation);
  // The state so far: weights are exp(s - peak), sum is that of this thread's keys.
  float* lse = p.lse + b * p.lse_batch + task.head * p.lse_head + slot * p.lse_token;
  float* out = p.out.data + b * p.out.batch + slot * p.out.token + task.head * p.out.head;
  float peak = valid ? *lse : -INFINITY;
  const bool begun = !(peak == -INFINITY);
  float sum = begun && quad == 0 ? 1.0f : 0.0f;
  float accumulator[kD / 4];
#pragma unroll
  for (int k = 0; k < kD / 4; ++k) {
    const int d = 8 * (k / 2) + 2 * quad + k % 2;
    accumulator[k] = begun && d < p.head_dim ? out[d] : 0.0f;
  }
  const Window window = valid ? window_of(p, b, slot) : Window{0, -1};
  const int64_t last_row = task.first + begin + rows - 1;

  for (int s = task.source_begin; s < task.source_end; ++s) {
    const SourceHead& source = p.sources[s];
    int64_t end = source.count;
    if (p.causal && last_row - source.first + 1 < end) end = last_row - source.first + 1;
    for (int64_t j0 = 0; j0 < end; j0 += kTile) {
      const int keys = static_cast<int>(end - j0 < kTile ? end - j0 : kTile);
      __syncthreads();  // the tiles before have been used
      load_tile<kD>(sm.key, source.key + b * source.key_batch + j0 * source.key_row, source.key_row,
                    keys, p.head_dim, p.rotary, source.rotate != 0, 1,
                    task.position + (source.first + j0) * p.dilation, p.dilation);
      load_tile<kD>(sm.value, source.value + b * source.value_batch + j0 * source.value_row,
                    source.value_row, keys, p.head_dim, p.rotary, false, 0, 0, 0);
      __syncthreads();
      float score[kPerThread];
      dot_rows<kD>(score, sm.query[row], sm.key, quad);
      float highest = -INFINITY;
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        const int j = quad + kQuad * k;
        const bool visible = j < keys && sees(p, task, window, query_row, source.first + j0 + j);
        score[k] = visible ? score[k] * p.scale : -INFINITY;
        highest = fmaxf(highest, score[k]);
      }
      const float risen = fmaxf(peak, quad_max(highest));
      const float base = risen == -INFINITY ? 0.0f : risen;  // nothing seen yet: all weights are 0
      const float kept = expf(peak - base);
      peak = risen;
      sum *= kept;
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        const float weight = expf(score[k] - base);
        sum += weight;
        sm.weight[row][quad + kQuad * k] = weight;
      }
#pragma unroll
      for (int k = 0; k < kD / 4; ++k) accumulator[k] *= kept;
      __syncwarp();  // a row's weights are written and read by one warp
      add_rows<kD>(accumulator, sm.weight[row], sm.value, keys, quad);
    }
  }
  sum = quad_sum(sum);
  if (!valid || sum == 0.0f) return;
#pragma unroll
  for (int k = 0; k < kD / 4; ++k) {
    const int d = 8 * (k / 2) + 2 * quad + k % 2;
    if (d < p.head_dim) out[d] = accumulator[k] / sum;
  }
  if (quad == 0) *lse = peak + logf(sum);
}

// --- 3. backward: queries
// --------------------------------------------------------------------------

template <int kD>
struct QueryShared {
  float query[kTile][kD + 4], grad_out[kTile][kD + 4], key[kTile][kD + 4], value[kTile][kD + 4];
  float weight[kTile][kTile + 4];
};

/// Grid: (items, B). As the forward, but gathers grad_query.
template <int kD>
__global__ void __launch_bounds__(kThreads, 1) grad_query_kernel(Common p) {
  auto& sm = shared<QueryShared<kD>>();
  const Item item = p.items[blockIdx.x];
  const TaskHead& task = p.tasks[item.index];
  const int64_t b = blockIdx.y, begin = int64_t{item.tile} * kTile;
  const int rows = static_cast<int>(task.count - begin < kTile ? task.count - begin : kTile);
  const int row = threadIdx.x / kQuad, quad = threadIdx.x % kQuad;
  const int64_t query_row = task.first + begin + row;
  const int64_t slot = task.slot + (begin + row) * task.step;
  const bool valid = row < rows;
  const int64_t first_slot = task.slot + begin * task.step;

  load_tile<kD>(sm.query, task.query + (b * task.query_batch + begin * task.query_row),
                task.query_row, rows, p.head_dim, p.rotary, task.rotate != 0, 0,
                task.position + (task.first + begin) * p.dilation, p.dilation);
  load_tile<kD>(sm.grad_out,
                p.grad_out.data + b * p.grad_out.batch + task.head * p.grad_out.head +
                    first_slot * p.grad_out.token,
                task.step * p.grad_out.token, rows, p.head_dim, p.rotary, false, 0, 0, 0);
  float lse = 0, delta = 0;
  if (valid) {
    lse = p.lse[b * p.lse_batch + task.head * p.lse_head + slot * p.lse_token];
    delta = p.delta[b * p.delta_batch + task.head * p.delta_head + slot * p.delta_token];
  }
  const Window window = valid ? window_of(p, b, slot) : Window{0, -1};
  const int64_t last_row = task.first + begin + rows - 1;
  float accumulator[kD / 4];
#pragma unroll
  for (int k = 0; k < kD / 4; ++k) accumulator[k] = 0;

  for (int s = task.source_begin; s < task.source_end; ++s) {
    const SourceHead& source = p.sources[s];
    int64_t end = source.count;
    if (p.causal && last_row - source.first + 1 < end) end = last_row - source.first + 1;
    for (int64_t j0 = 0; j0 < end; j0 += kTile) {
      const int keys = static_cast<int>(end - j0 < kTile ? end - j0 : kTile);
      __syncthreads();
      load_tile<kD>(sm.key, source.key + b * source.key_batch + j0 * source.key_row, source.key_row,
                    keys, p.head_dim, p.rotary, source.rotate != 0, 1,
                    task.position + (source.first + j0) * p.dilation, p.dilation);
      load_tile<kD>(sm.value, source.value + b * source.value_batch + j0 * source.value_row,
                    source.value_row, keys, p.head_dim, p.rotary, false, 0, 0, 0);
      __syncthreads();
      float score[kPerThread], grad_weight[kPerThread];
      dot_rows<kD>(score, sm.query[row], sm.key, quad);
      dot_rows<kD>(grad_weight, sm.grad_out[row], sm.value, quad);
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        const int j = quad + kQuad * k;
        const bool visible = j < keys && sees(p, task, window, query_row, source.first + j0 + j);
        sm.weight[row][j] =
            visible ? expf(score[k] * p.scale - lse) * (grad_weight[k] - delta) : 0.0f;
      }
      __syncwarp();
      add_rows<kD>(accumulator, sm.weight[row], sm.key, keys, quad);
    }
  }
  if (!valid) return;
  add_gradient<kD>(p.grad_query.data + b * p.grad_query.batch + slot * p.grad_query.token +
                       task.head * p.grad_query.head,
                   accumulator, p.scale, p.head_dim, quad, p.rotary, p.rotary.pairs > 0, 0,
                   task.position + query_row * p.dilation);
}

// --- 4. backward: keys and values
// ------------------------------------------------------------------

template <int kD>
struct KeyShared {
  float key[kTile][kD + 4], value[kTile][kD + 4], query[kTile][kD + 4], grad_out[kTile][kD + 4];
  float weight[kTile][kTile + 4], grad_score[kTile][kTile + 4];
  float lse[kTile], delta[kTile];
  Window window[kTile];
};

/// Grid: (items, B). A block owns 32 key rows of one head of one source; a thread's row is a key.
template <int kD>
__global__ void __launch_bounds__(kThreads, 1) grad_key_kernel(Common p) {
  auto& sm = shared<KeyShared<kD>>();
  const Item item = p.items[blockIdx.x];
  const SourceHead& source = p.sources[item.index];
  const TaskHead& task = p.tasks[source.task];
  const int64_t b = blockIdx.y, begin = int64_t{item.tile} * kTile;
  const int keys = static_cast<int>(source.count - begin < kTile ? source.count - begin : kTile);
  const int row = threadIdx.x / kQuad, quad = threadIdx.x % kQuad;
  const int64_t key_row = source.first + begin + row;

  load_tile<kD>(sm.key, source.key + b * source.key_batch + begin * source.key_row, source.key_row,
                keys, p.head_dim, p.rotary, source.rotate != 0, 1,
                task.position + (source.first + begin) * p.dilation, p.dilation);
  load_tile<kD>(sm.value, source.value + b * source.value_batch + begin * source.value_row,
                source.value_row, keys, p.head_dim, p.rotary, false, 0, 0, 0);
  float grad_key[kD / 4], grad_value[kD / 4];
#pragma unroll
  for (int k = 0; k < kD / 4; ++k) grad_key[k] = grad_value[k] = 0;

  // Causal queries before the tile's first key see none of it.
  int64_t i0 = 0;
  if (p.causal && source.first + begin > task.first) i0 = source.first + begin - task.first;
  for (; i0 < task.count; i0 += kTile) {
    const int rows = static_cast<int>(task.count - i0 < kTile ? task.count - i0 : kTile);
    const int64_t first_slot = task.slot + i0 * task.step;
    __syncthreads();
    load_tile<kD>(sm.query, task.query + (b * task.query_batch + i0 * task.query_row),
                  task.query_row, rows, p.head_dim, p.rotary, task.rotate != 0, 0,
                  task.position + (task.first + i0) * p.dilation, p.dilation);
    load_tile<kD>(sm.grad_out,
                  p.grad_out.data + b * p.grad_out.batch + task.head * p.grad_out.head +
                      first_slot * p.grad_out.token,
                  task.step * p.grad_out.token, rows, p.head_dim, p.rotary, false, 0, 0, 0);
    const int i = static_cast<int>(threadIdx.x);
    if (i < rows) {
      const int64_t slot = first_slot + i * task.step;
      sm.lse[i] = p.lse[b * p.lse_batch + task.head * p.lse_head + slot * p.lse_token];
      sm.delta[i] = p.delta[b * p.delta_batch + task.head * p.delta_head + slot * p.delta_token];
      sm.window[i] = window_of(p, b, slot);
    }
    __syncthreads();
    float score[kPerThread], grad_weight[kPerThread];
    dot_rows<kD>(score, sm.key[row], sm.query, quad);
    dot_rows<kD>(grad_weight, sm.value[row], sm.grad_out, quad);
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      const int i = quad + kQuad * k;
      const bool visible = row < keys && i < rows &&
                           sees(p, task, sm.window[i < rows ? i : 0], task.first + i0 + i, key_row);
      float weight = 0, grad_score = 0;
      if (visible) {
        weight = expf(score[k] * p.scale - sm.lse[i]);
        grad_score = weight * (grad_weight[k] - sm.delta[i]);
      }
      sm.weight[row][i] = weight;
      sm.grad_score[row][i] = grad_score;
    }
    __syncwarp();
    add_rows<kD>(grad_value, sm.weight[row], sm.grad_out, rows, quad);
    add_rows<kD>(grad_key, sm.grad_score[row], sm.query, rows, quad);
  }
  if (row >= keys) return;
  const int64_t i = begin + row;
  add_gradient<kD>(source.grad_key + b * source.grad_key_batch + i * source.grad_key_row, grad_key,
                   p.scale, p.head_dim, quad, p.rotary, source.rotate_back != 0, 1,
                   task.position + key_row * p.dilation);
  add_gradient<kD>(source.grad_value + b * source.grad_value_batch + i * source.grad_value_row,
                   grad_value, 1.0f, p.head_dim, quad, p.rotary, false, 0, 0);
}

// --- 5. the small ones
// -----------------------------------------------------------------------------

/// One warp per row of [B, L, H].
__global__ void __launch_bounds__(kThreads)
    delta_kernel(float* delta, int64_t delta_batch, int64_t delta_head, int64_t delta_token,
                 InputRows grad_out, Rows out, int64_t count, int64_t tokens, int64_t heads,
                 int head_dim) {
  const int64_t row = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= count) return;
  const int64_t h = row % heads, t = row / heads % tokens, b = row / heads / tokens;
  const Input x = grad_out.data + (b * grad_out.batch + t * grad_out.token + h * grad_out.head);
  const float* y = out.data + b * out.batch + t * out.token + h * out.head;
  float sum = 0;
  for (int d = lane; d < head_dim; d += 32) sum += x[d] * y[d];
  sum = warp_sum(sum);
  if (lane == 0) delta[b * delta_batch + h * delta_head + t * delta_token] = sum;
}

struct PackedHeads {
  int64_t slot[kPackHeads], count[kPackHeads], chunk_slot[kPackHeads];
  int64_t position[kPackHeads];  // of the first row
};
template <typename T>
struct ChunkRows {
  T* data;
  int64_t batch, row;  // strides
};
template <typename T>
struct TokenRows {
  T* data;
  int64_t batch, token, head;  // strides
};

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(uint16_t x) { return bf16_to_float(x); }
__device__ __forceinline__ void store(float* to, float x) { *to = x; }
__device__ __forceinline__ void store(uint16_t* to, float x) { *to = float_to_bf16(x); }

/// Grid: (rows, heads, B). Rotates with angles computed here: every row is read once; keys are
/// rotated in float32 and then rounded to the chunk's type.
/// unpack false: chunk = rows; true: rows += chunk, keys rotated back. T: of the tokens, C: of the
/// chunk (uint16_t: bf16), the same for keys and values.
template <bool unpack, typename T, typename C>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(ChunkRows<C> chunk_key, ChunkRows<C> chunk_value, TokenRows<T> key,
                TokenRows<T> value, PackedHeads heads, int first_head, int64_t step,
                int64_t dilation, int head_dim, bool rotate, Frequencies f) {
  const int head = blockIdx.y;
  const int64_t i = blockIdx.x, b = blockIdx.z;
  if (i >= heads.count[head]) return;
  const int64_t token = heads.slot[head] + i * step, h = first_head + head;
  T* key_row = key.data + b * key.batch + token * key.token + h * key.head;
  T* value_row = value.data + b * value.batch + token * value.token + h * value.head;
  const int64_t chunk_row = heads.chunk_slot[head] + i;
  C* chunk_key_row = chunk_key.data + b * chunk_key.batch + chunk_row * chunk_key.row;
  C* chunk_value_row = chunk_value.data + b * chunk_value.batch + chunk_row * chunk_value.row;
  const int end = head_dim;
  for (int d = 2 * threadIdx.x; d < end; d += 2 * kThreads) {
    const bool both = d + 1 < head_dim;
    float x = unpack ? to_f32(chunk_key_row[d]) : to_f32(key_row[d]), y = 0;
    if (both) y = unpack ? to_f32(chunk_key_row[d + 1]) : to_f32(key_row[d + 1]);
    if (rotate) {
      const double2 turn = turn_in_double(f, d / 2, heads.position[head] + i * dilation, true);
      const float c = static_cast<float>(turn.x), s = static_cast<float>(turn.y), z = x;
      x = unpack ? z * c + y * s : z * c - y * s;
      y = unpack ? y * c - z * s : y * c + z * s;
    }
    if constexpr (unpack) {
      key_row[d] += x;
      value_row[d] += chunk_value_row[d];
      if (both) key_row[d + 1] += y;
      if (both) value_row[d + 1] += chunk_value_row[d + 1];
    } else {
      store(chunk_key_row + d, x);
      store(chunk_value_row + d, to_f32(value_row[d]));
      if (both) store(chunk_key_row + d + 1, y);
      if (both) store(chunk_value_row + d + 1, to_f32(value_row[d + 1]));
    }
  }
}

// --- 6. the host's side
// ----------------------------------------------------------------------------

TableRequest request(bool backward) {
  return {.query_tile = kTile, .key_tile = backward ? kTile : 0, .gradients = backward};
}

/// Calls f with the smallest compiled width that holds head_dim.
template <typename F>
void with_width(int64_t head_dim, F f) {
  if (head_dim <= 32)
    f(std::integral_constant<int, 32>{});
  else if (head_dim <= 64)
    f(std::integral_constant<int, 64>{});
  else if (head_dim <= 96)
    f(std::integral_constant<int, 96>{});
  else if (head_dim <= 128)
    f(std::integral_constant<int, 128>{});
  else
    f(std::integral_constant<int, 256>{});
}

/// Throws Error where the GPU has less shared memory for a block than the kernels of this D take:
/// GPUs for desktops have too little above D = 128.
void check_shared_memory(int64_t head_dim, size_t bytes) {
  const int64_t most = device_runtime::shared_memory_per_block();
  if (static_cast<int64_t>(bytes) <= most) return;
  throw Error(
      "attention by the plain kernel: D {} takes {} bytes of shared memory per block, this GPU has "
      "{}; choose model.dim and model.heads for a smaller D (dim / heads), or run.backend=cpu",
      head_dim, bytes, most);
}

template <typename T>
ChunkRows<T> chunk_rows(const TensorView& view) {
  return {static_cast<T*>(view.data), view.stride[0], view.stride[1]};
}
template <typename T>
TokenRows<T> token_rows(const TensorView& view) {
  return {static_cast<T*>(view.data), view.stride[0], view.stride[1], view.stride[2]};
}

template <bool unpack, typename T, typename C>
void pack(Context& context, const TensorView& chunk_key, const TensorView& chunk_value,
          const TensorView& key, const TensorView& value, const HeadRows& rows,
          std::span<const int64_t> chunk_slot, const SegmentTask& task,
          const AttentionOptions& options) {
  const int64_t heads = key.shape[2], head_dim = key.shape[3];
  const bool rotate = options.rotary != nullptr && options.rotary->enabled();
  const Frequencies frequencies = frequencies_of(options, head_dim);
  for (int64_t first = 0; first < heads; first += kPackHeads) {
    PackedHeads packed{};
    const int64_t group = std::min<int64_t>(kPackHeads, heads - first);
    int64_t most = 0;
    for (int64_t i = 0; i < group; ++i) {
      const int64_t h = first + i;
      packed.slot[i] = rows.slot[h];
      packed.count[i] = rows.count[h];
      packed.chunk_slot[i] = chunk_slot[h];
      packed.position[i] = task.segment.begin + options.head_offset[h] +
                           rows.first[h] * options.dilation - task.origin;
      most = std::max(most, rows.count[h]);
    }
    launch(pack_kernel<unpack, T, C>,
           dim3(static_cast<unsigned>(most), static_cast<unsigned>(group),
                static_cast<unsigned>(key.shape[0])),
           kThreads, 0, context.stream(), chunk_rows<C>(chunk_key), chunk_rows<C>(chunk_value),
           token_rows<T>(key), token_rows<T>(value), packed, static_cast<int>(first), rows.step,
           options.dilation, static_cast<int>(head_dim), rotate, frequencies);
  }
}

}  // namespace

int64_t attention_workspace_bytes(const Context&, int64_t head_dim,
                                  std::span<const SegmentTask> segments, bool backward) {
  return table_bytes(1, head_dim, segments, request(backward));
}

void attention_begin(Context& context, const TensorView& out, const TensorView& lse) {
  fill(context, out, 0.0f);
  fill(context, lse, -INFINITY);
}

void attention_forward(Context& context, const AttentionForward& tensors,
                       const AttentionOptions& options, void* workspace) {
  if (tensors.segments.empty()) return;  // there is no workspace for tables of nothing
  Tables tables(context, tensors.query, tensors.segments, options, workspace, request(false));
  Common& common = tables.common;
  common.out = rows_of(tensors.out);
  tables.set_lse(tensors.lse);
  common.items = tables.query_items;
  with_width(tensors.query.shape[3], [&](auto width) {
    check_shared_memory(tensors.query.shape[3], sizeof(ForwardShared<width>));
    launch<Carveout::kMostShared>(forward_kernel<width>,
                                  item_grid(tables.query_item_count, tensors.query.shape[0]),
                                  kThreads, sizeof(ForwardShared<width>), context.stream(), common);
  });
}

void attention_delta(Context& context, const TensorView& delta, const TensorView& grad_out,
                     const TensorView& out) {
  const int64_t count = out.shape[0] * out.shape[1] * out.shape[2];
  const int64_t blocks = (count + kThreads / 32 - 1) / (kThreads / 32);
  launch(delta_kernel, item_grid(blocks, 1), kThreads, 0, context.stream(),
         static_cast<float*>(delta.data), delta.stride[0], delta.stride[1], delta.stride[2],
         input_rows(grad_out), rows_of(out), count, out.shape[1], out.shape[2],
         static_cast<int>(out.shape[3]));
}

void attention_backward(Context& context, const AttentionBackward& tensors,
                        const AttentionOptions& options, void* workspace) {
  if (tensors.segments.empty()) return;
  Tables tables(context, tensors.query, tensors.segments, options, workspace, request(true));
  Common& common = tables.common;
  common.grad_query = rows_of(tensors.grad_query);
  common.grad_out = input_rows(tensors.grad_out);
  tables.set_lse(tensors.lse);
  tables.set_delta(tensors.delta);
  const int64_t batch = tensors.query.shape[0];
  void* stream = context.stream();
  with_width(tensors.query.shape[3], [&](auto width) {
    check_shared_memory(tensors.query.shape[3],
                        std::max(sizeof(QueryShared<width>), sizeof(KeyShared<width>)));
    common.items = tables.query_items;
    launch<Carveout::kMostShared>(grad_query_kernel<width>,
                                  item_grid(tables.query_item_count, batch), kThreads,
                                  sizeof(QueryShared<width>), stream, common);
    common.items = tables.key_items;
    launch<Carveout::kMostShared>(grad_key_kernel<width>, item_grid(tables.key_item_count, batch),
                                  kThreads, sizeof(KeyShared<width>), stream, common);
  });
}

void attention_pack_rows(Context& context, const TensorView& chunk_key,
                         const TensorView& chunk_value, const TensorView& key,
                         const TensorView& value, const HeadRows& rows,
                         std::span<const int64_t> chunk_slot, const SegmentTask& task,
                         const AttentionOptions& options) {
  LN_CHECK(key.dtype == value.dtype && chunk_key.dtype == chunk_value.dtype,
           "key {} and value {} into chunks {} and {}: on a GPU keys and values have one type",
           key.describe(), value.describe(), chunk_key.describe(), chunk_value.describe());
  const bool from_bf16 = key.dtype == DType::kBF16, to_bf16 = chunk_key.dtype == DType::kBF16;
  const auto call = from_bf16
                        ? (to_bf16 ? pack<false, uint16_t, uint16_t> : pack<false, uint16_t, float>)
                        : (to_bf16 ? pack<false, float, uint16_t> : pack<false, float, float>);
  call(context, chunk_key, chunk_value, key, value, rows, chunk_slot, task, options);
}

void attention_unpack_rows_add(Context& context, const TensorView& grad_key,
                               const TensorView& grad_value, const TensorView& chunk_grad_key,
                               const TensorView& chunk_grad_value, const HeadRows& rows,
                               std::span<const int64_t> chunk_slot, const SegmentTask& task,
                               const AttentionOptions& options) {
  pack<true, float, float>(context, chunk_grad_key, chunk_grad_value, grad_key, grad_value, rows,
                           chunk_slot, task, options);
}

}  // namespace longnet::cuda
