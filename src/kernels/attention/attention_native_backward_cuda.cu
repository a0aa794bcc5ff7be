// The backward of attention_native.h: five matrix products per tile of keys and queries, all on
// tensor cores.
//
// A block of eight warps owns 128 key rows of one head of one source and goes through the query
// rows that see them, 64 at a time. Its two halves work on different products of the same tile; a
// warp owns 32 of the keys (transposed tiles: keys down, queries across, so that weights leave one
// product as the left operand of the next without leaving their registers):
//   half 0:  s = k q^T      p = exp(scale s - lse)     grad_v += p grad_o
//   half 1:  t = v grad_o^T     ds = p (t - delta)     grad_k += ds q;   grad_q += ds^T k
// Per tile there are two barriers:
//   1  half 0: s, p, written to shared memory          half 1: grad_q of the tile before, then t
//   2  half 0: grad_v                                  half 1: reads p, ds, written; grad_k
// so exponentials of one half run beside products of the other. Query tiles come by cp.async one
// tile ahead. Tiles that causality hides are never visited; only tiles on the diagonal and the last
// keys of a source are masked.
//
// grad_v and grad_k stay in registers and are added to their rows once, by the only block that has
// them. grad_q is added with float atomics, whose order is not fixed: its last bits may differ from
// run to run. (Without atomics two kernels would compute s and t twice: seven products for five.)
// With positions the sums of grad_q are of rotated queries; they are gathered in the workspace and
// rotated back at the end. p and ds are rounded to bf16, everything else is float32.
#include <vector>

#include "core/alignment.h"
#include "core/context.h"
#include "core/upload_ring.h"
#include "kernels/attention/attention_native.h"
#include "kernels/attention/attention_native_tile.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

namespace longnet::cuda {
namespace {

using namespace attention;

constexpr int kThreads = 256;
constexpr int kKeys = 128;    // key rows of a block
constexpr int kQueries = 64;  // query rows of a tile
constexpr int kWarpKeys = 32;
constexpr int kHalfWarps = kKeys / kWarpKeys;
constexpr int kRowThreads = 128;  // of the kernels that go through query rows

/// Query-side operands that are not read or added to in place, [B, rows, D] each; null: in place.
struct Scratch {
  float* grad_query;         // of rotated queries
  const uint16_t* grad_out;  // rounded
  const int64_t* first_row;  // [tasks]
  int64_t rows;
};

// --- 1. tiles in shared memory
// ---------------------------------------------------------------------

/// What a block does, the same for all its threads: here it costs no registers. Pointers lead to
/// the first row that the block visits; steps are from row to row.
struct Plan {
  const uint16_t *key[2], *query[2];  // keys and values; queries and grad_out
  float* grad_key[2];                 // by half: of values, of keys
  float* grad_query;
  const float* row_value[2];  // lse, delta
  int64_t key_step[2], query_step[2], grad_key_step[2], grad_query_step, row_value_step[2];
  int64_t position;  // of the first key
  int32_t keys;      // rows of the tile
  int32_t queries;   // rows from the first one visited on
  int32_t ahead;     // key j is visible to query i if j <= i + ahead
  int32_t rotate_back;
};

using WeightTile = Tile<kKeys, kQueries>;

template <int kD>
struct Shared {
  Tile<kKeys, kD> keys[2];           // keys, values
  Tile<kQueries, kD> queries[2][2];  // stage: queries, grad_out
  WeightTile weight, grad_score;     // p and ds, transposed
  float row_value[2][2][kQueries];   // stage: lse in powers of two, delta
  Plan plan;
};

/// The thread's number in its block, as if it were read anew: addresses that follow from it are
/// computed where they are needed, instead of being kept in registers through the whole loop.
__device__ __forceinline__ unsigned thread_here() { return anew(threadIdx.x); }
__device__ __forceinline__ unsigned lane_here() { return thread_here() % 32; }
/// The half of the block, the warp in its half, and the first of the warp's keys. Warps w and w +
/// 4, which share a scheduler, are of different halves.
__device__ __forceinline__ unsigned half_here() { return thread_here() / (32 * kHalfWarps); }
__device__ __forceinline__ unsigned part_here() { return thread_here() / 32 % kHalfWarps; }
__device__ __forceinline__ unsigned first_here() { return part_here() * kWarpKeys; }

// --- 2. products of a warp
// -------------------------------------------------------------------------

/// Sums of a 32 x 64 tile: [row / 16][column / 8][register of mma_bf16]. Weights take their place
/// once they are rounded to bf16: [m][2 k] then holds, as bits, the left operand of depths 16 k ..
/// (One array: a barrier lies between the two, where one half of the block has these and the other
/// those.)
using Scores = float[2][kQueries / 8][4];

/// s += a b^T, rows [first, first + 32) of a, all 64 of b.
template <int kD>
__device__ __forceinline__ void multiply(Scores& s, const Tile<kKeys, kD>& a,
                                         const Tile<kQueries, kD>& b) {
  const RowsReader<kD> rows(a, first_here(), 0, thread_here());
  const ColumnsReader<kD> columns(b, 0, 0, thread_here());
#pragma unroll
  for (int d = 0; d < kD; d += 16) {
    uint32_t x[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) rows.a(x[m], 16 * m, d / 8);
#pragma unroll
    for (int n = 0; n < kQueries / 16; ++n) {
      uint32_t y[4];
      columns.b(y, 16 * n, d / 8);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        mma_bf16(s[m][2 * n], x[m], y[0], y[1]);
        mma_bf16(s[m][2 * n + 1], x[m], y[2], y[3]);
      }
    }
  }
}

/// sum += w b, [32, 64] x [64, kD].
template <int kD>
__device__ __forceinline__ void accumulate(float (&sum)[2][kD / 8][4], const Scores& w,
                                           const Tile<kQueries, kD>& b) {
  const RowsReader<kD> rows(b, 0, 0, thread_here());
#pragma unroll
  for (int k = 0; k < kQueries / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kD / 16; ++n) {
      uint32_t y[4];
      rows.b_transposed(y, 16 * k, 2 * n);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const float(&v)[4] = w[m][2 * k];
        const uint32_t x[4] = {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                               __float_as_uint(v[3])};
        mma_bf16(sum[m][2 * n], x, y[0], y[1]);
        mma_bf16(sum[m][2 * n + 1], x, y[2], y[3]);
      }
    }
  }
}

/// grad_query += scale ds^T k for the tile that begins at query i, which sm.grad_score is of; by
/// half 1, each of whose warps takes a part of the rows and columns.
template <int kD>
__device__ __forceinline__ void add_grad_query(const Shared<kD>& sm, int i, float scale) {
  constexpr int kAcross = kD % 32 == 0 ? 2 : 1;             // parts side by side
  constexpr int kRows = kQueries / (kHalfWarps / kAcross);  // of a part
  constexpr int kColumns = kD / kAcross;
  const unsigned lane = lane_here();
  const unsigned row = part_here() / kAcross * kRows, column = part_here() % kAcross * kColumns;
  const ColumnsReader<kQueries, kRows> weights(sm.grad_score, 0, row / 8, thread_here());
  const RowsReader<kD, kColumns> keys(sm.keys[0], 0, column / 8, thread_here());
  float sum[kRows / 16][kColumns / 8][4] = {};
#pragma unroll
  for (int j = 0; j < kKeys; j += 16) {
    uint32_t x[kRows / 16][4];
#pragma unroll
    for (int m = 0; m < kRows / 16; ++m) weights.a_transposed(x[m], j, 2 * m);
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      uint32_t y[4];
      keys.b_transposed(y, j, 2 * n);
#pragma unroll
      for (int m = 0; m < kRows / 16; ++m) {
        mma_bf16(sum[m][2 * n], x[m], y[0], y[1]);
        mma_bf16(sum[m][2 * n + 1], x[m], y[2], y[3]);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kRows / 16; ++m)
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      const int query = i + row + 16 * m + 8 * below + lane / 4;
      if (query >= sm.plan.queries) continue;
      float* const to =
          sm.plan.grad_query + query * sm.plan.grad_query_step + column + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n)
        add_two(to + 8 * n, scale * sum[m][n][2 * below], scale * sum[m][n][2 * below + 1]);
    }
  __syncwarp();  // rows past the end left their lanes behind; instructions of whole warps follow
}

// --- 3. the kernel

/// Nothing of the warp's keys is visible to the tile that begins at query i: they are past the
/// end or above the diagonal.
__device__ __forceinline__ bool is_hidden(const Plan& plan, int i) {
  const int first = static_cast<int>(first_here());
  return first >= plan.keys || first > kQueries - 1 + plan.ahead + i;
}

/// Scores of hidden pairs become -inf, where there may be any.
__device__ __forceinline__ void mask(Scores& s, const Plan& plan, int tile) {
  const int keys = plan.keys, ahead = plan.ahead + tile;
  if (keys == kKeys && ahead >= kKeys - 1) return;
  const unsigned lane = lane_here();
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      const int j = static_cast<int>(first_here() + 16 * m + 8 * below + lane / 4);
      // The first query that sees key j, counted from the lane's first.
      const int seen = j >= keys ? kQueries : j - ahead - static_cast<int>(lane % 4 * 2);
#pragma unroll
      for (int n = 0; n < kQueries / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (8 * n + i < seen) s[m][n][2 * below + i] = -INFINITY;
    }
}

/// One warp's scores become p; written to shared memory and kept.
__device__ __forceinline__ void weigh(Scores& s, WeightTile& weight, const float* lse,
                                      float scale_log2) {
  const unsigned lane = lane_here();
  const TileWriter<kQueries> weights(weight, first_here(), thread_here());
  lse += lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < kQueries / 16; ++n) {
    keep_order();
    const float2 peak[2] = {*reinterpret_cast<const float2*>(lse + 16 * n),
                            *reinterpret_cast<const float2*>(lse + 16 * n + 8)};
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      uint32_t p[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float(&score)[4] = s[m][2 * n + i / 2];
        p[i] = pack_bf16(fast_exp2(score[i % 2 * 2] * scale_log2 - peak[i / 2].x),
                         fast_exp2(score[i % 2 * 2 + 1] * scale_log2 - peak[i / 2].y));
      }
      weights.store(16 * m, 2 * n, p);
#pragma unroll
      for (int i = 0; i < 4; ++i) s[m][2 * n][i] = __uint_as_float(p[i]);
    }
  }
}

/// One warp's t becomes ds with the weights in shared memory; written and kept.
__device__ __forceinline__ void differentiate(Scores& t, const WeightTile& weight,
                                              WeightTile& grad_score, const float* delta) {
  const unsigned lane = lane_here();
  const RowsReader<kQueries> weights(weight, first_here(), 0, thread_here());
  const TileWriter<kQueries> grad_scores(grad_score, first_here(), thread_here());
  delta += lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < kQueries / 16; ++n) {
    keep_order();
    uint32_t x[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) weights.a(x[m], 16 * m, 2 * n);
    float2 less[2] = {*reinterpret_cast<const float2*>(delta + 16 * n),
                      *reinterpret_cast<const float2*>(delta + 16 * n + 8)};
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float(&score)[4] = t[m][2 * n + i / 2];
        const uint32_t p = x[m][i];
        x[m][i] =
            pack_bf16(__uint_as_float(p << 16) * (score[i % 2 * 2] - less[i / 2].x),
                      __uint_as_float(p & 0xffff0000u) * (score[i % 2 * 2 + 1] - less[i / 2].y));
      }
      grad_scores.store(16 * m, 2 * n, x[m]);
#pragma unroll
      for (int i = 0; i < 4; ++i) t[m][2 * n][i] = __uint_as_float(x[m][i]);
    }
  }
}

/// Zeros for the 32 rows of a warp.
__device__ __forceinline__ void clear_rows(WeightTile& grad_score) {
  const int row = static_cast<int>(first_here() + lane_here());
#pragma unroll
  for (int piece = 0; piece < kQueries / 8; ++piece)
    *reinterpret_cast<uint4*>(grad_score.at(row, piece)) = make_uint4(0, 0, 0, 0);
}

/// (a, b) times the conjugate of turn.
__device__ __forceinline__ float2 turned_back(float a, float b, float2 turn) {
  return make_float2(a * turn.x + b * turn.y, b * turn.x - a * turn.y);
}

/// Fills the block's plan; one thread.
template <int kD>
__device__ __forceinline__ void make_plan(Plan& plan, const Common& p, const Scratch& scratch) {
  const Item item = p.items[blockIdx.x];
  const SourceHead& source = p.sources[item.index];
  const TaskHead& task = p.tasks[source.task];
  const int64_t b = blockIdx.y, begin = int64_t{item.tile} * kKeys;
  const int64_t key_row = source.first + begin;
  // Causal queries before the tile's first key see none of it.
  const int64_t skipped = p.causal && key_row > task.first ? key_row - task.first : 0;
  const int64_t ahead = task.first + skipped - key_row;
  plan.keys = static_cast<int>(source.count - begin < kKeys ? source.count - begin : kKeys);
  plan.queries = static_cast<int>(task.count - skipped);
  plan.ahead = p.causal && ahead < kKeys ? static_cast<int>(ahead) : kKeys;
  plan.position = task.position + key_row * p.dilation;
  plan.rotate_back = source.rotate_back != 0;

  plan.key[0] = source.key.half() + b * source.key_batch + begin * source.key_row;
  plan.key[1] = source.value.half() + b * source.value_batch + begin * source.value_row;
  plan.key_step[0] = source.key_row;
  plan.key_step[1] = source.value_row;
  plan.grad_key[0] =
      source.grad_value + b * source.grad_value_batch + begin * source.grad_value_row;
  plan.grad_key[1] = source.grad_key + b * source.grad_key_batch + begin * source.grad_key_row;
  plan.grad_key_step[0] = source.grad_value_row;
  plan.grad_key_step[1] = source.grad_key_row;

  const int64_t slot = task.slot + skipped * task.step, head = task.head;
  plan.query[0] = task.query.half() + b * task.query_batch + skipped * task.query_row;
  plan.query_step[0] = task.query_row;
  plan.query[1] = p.grad_out.data.half() + b * p.grad_out.batch + head * p.grad_out.head +
                  slot * p.grad_out.token;
  plan.query_step[1] = task.step * p.grad_out.token;
  plan.grad_query = p.grad_query.data + b * p.grad_query.batch + head * p.grad_query.head +
                    slot * p.grad_query.token;
  plan.grad_query_step = task.step * p.grad_query.token;
  plan.row_value[0] = p.lse + b * p.lse_batch + head * p.lse_head + slot * p.lse_token;
  plan.row_value_step[0] = task.step * p.lse_token;
  plan.row_value[1] = p.delta + b * p.delta_batch + head * p.delta_head + slot * p.delta_token;
  plan.row_value_step[1] = task.step * p.delta_token;
  if (scratch.grad_out == nullptr && scratch.grad_query == nullptr) return;
  const int64_t row = (b * scratch.rows + scratch.first_row[source.task] + skipped) * kD;
  if (scratch.grad_out != nullptr) {
    plan.query[1] = scratch.grad_out + row;
    plan.query_step[1] = kD;
  }
  if (scratch.grad_query != nullptr) {
    plan.grad_query = scratch.grad_query + row;
    plan.grad_query_step = kD;
  }
}

/// Starts the copies of the query tile that begins at row i.
template <int kD>
__device__ __forceinline__ void start_queries(Shared<kD>& sm, int stage, int i) {
#pragma unroll
  for (int operand = 0; operand < 2; ++operand) {
    const int64_t step = sm.plan.query_step[operand];
    load_async<kThreads>(sm.queries[stage][operand], sm.plan.query[operand] + i * step, step,
                         sm.plan.queries - i, thread_here());
  }
  copy_async_commit();
}

/// lse (threads 0 to 63) or delta (64 to 127, the others of half 0) of a row of the tile that
/// begins at row i. Rows past the end have lse = -inf.
__device__ __forceinline__ float load_row_value(const Plan& plan, int i) {
  static_assert(2 * kQueries == 32 * kHalfWarps);
  const unsigned which = thread_here() / kQueries;
  const int row = i + static_cast<int>(thread_here() % kQueries);
  if (row < plan.queries) return plan.row_value[which][row * plan.row_value_step[which]];
  return which == 0 ? -INFINITY : 0.0f;
}

/// Puts it where the tile's products look for it: lse in powers of two, and inf for rows that see
/// no key in any branch, so that they get no weight.
template <int kD>
__device__ __forceinline__ void store_row_value(Shared<kD>& sm, int stage, float value) {
  const unsigned which = thread_here() / kQueries;
  if (which == 0) value = value == -INFINITY ? INFINITY : value * kLog2E;
  sm.row_value[stage][which][thread_here() % kQueries] = value;
}

/// The warp's rows of grad_value (half 0) or grad_key (1) += its sums, rotated back if asked.
template <int kD>
__device__ __forceinline__ void add_key_rows(const Plan& plan, const float (&sum)[2][kD / 8][4],
                                             const Common& p) {
  const unsigned lane = lane_here();
  const unsigned half = half_here(), first = first_here();
  const float factor = half == 1 ? p.scale : 1.0f;
  const bool back = half == 1 && plan.rotate_back;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      const int j = first + 16 * m + 8 * below + lane / 4;
      if (j >= plan.keys) continue;
      float* const to = plan.grad_key[half] + j * plan.grad_key_step[half];
      // A few pairs at a time: their loads are under way together, ahead of the stores.
      constexpr int kTogether = kD == 80 ? 5 : 4;
#pragma unroll
      for (int n = 0; n < kD / 8; n += kTogether) {
        float2 before[kTogether], turn[kTogether];
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          const int d = 8 * (n + k) + static_cast<int>(lane % 4) * 2;
          before[k] = *reinterpret_cast<const float2*>(to + d);
          turn[k] = make_float2(1, 0);
        }
        if (back) {  // one branch for all: within a branch of its own each would be waited for
#pragma unroll
          for (int k = 0; k < kTogether; ++k)
            turn[k] = turn_of(p.rotary, 1, plan.position + j * p.dilation,
                              (8 * (n + k) + static_cast<int>(lane % 4) * 2) / 2);
        }
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          const int d = 8 * (n + k) + static_cast<int>(lane % 4) * 2;
          float2 more =
              make_float2(factor * sum[m][n + k][2 * below], factor * sum[m][n + k][2 * below + 1]);
          if (back) more = turned_back(more.x, more.y, turn[k]);
          *reinterpret_cast<float2*>(to + d) =
              make_float2(before[k].x + more.x, before[k].y + more.y);
        }
      }
    }
}

/// Grid: (key items, B).
template <int kD>
__global__ void __launch_bounds__(kThreads, 1) backward_kernel(Common p, Scratch scratch) {
  auto& sm = shared<Shared<kD>>();
  if (threadIdx.x == 0) make_plan<kD>(sm.plan, p, scratch);
  __syncthreads();
  if (sm.plan.queries <= 0) return;
  for (int operand = 0; operand < 2; ++operand)
    load_async<kThreads>(sm.keys[operand], sm.plan.key[operand], sm.plan.key_step[operand],
                         sm.plan.keys, thread_here());
  start_queries(sm, 0, 0);
  if (half_here() == 0) store_row_value(sm, 0, load_row_value(sm.plan, 0));
  copy_async_wait<0>();
  __syncthreads();

  float sum[2][kD / 8][4] = {};  // half 0: grad_value, 1: grad_key / scale, of 32 rows
  for (int i = 0; i < sm.plan.queries; i += kQueries) {
    const int stage = i / kQueries % 2;
    if (i + kQueries < sm.plan.queries) start_queries(sm, 1 - stage, i + kQueries);
    if (half_here() == 1 && i > 0) add_grad_query<kD>(sm, i - kQueries, p.scale);
    Scores s = {};  // defined on every path: else it would stay in registers from tile to tile
    if (!is_hidden(sm.plan, i))
      multiply<kD>(s, sm.keys[half_here()], sm.queries[stage][half_here()]);
    if (half_here() == 0) {
      const float next = load_row_value(sm.plan, i + kQueries);  // comes while weights are computed
      if (!is_hidden(sm.plan, i)) {
        mask(s, sm.plan, i);
        weigh(s, sm.weight, sm.row_value[stage][0], p.scale * kLog2E);
      }
      store_row_value(sm, 1 - stage, next);
    }
    __syncthreads();  // weights are there; grad_score has been used
    if (half_here() == 1 && !is_hidden(sm.plan, i))
      differentiate(s, sm.weight, sm.grad_score, sm.row_value[stage][1]);
    if (half_here() == 1 && is_hidden(sm.plan, i)) clear_rows(sm.grad_score);
    if (!is_hidden(sm.plan, i)) accumulate<kD>(sum, s, sm.queries[stage][1 - half_here()]);
    copy_async_wait<0>();
    __syncthreads();  // grad_score and the next tile are there; weights are used
  }
  if (half_here() == 1)
    add_grad_query<kD>(sm, (sm.plan.queries - 1) / kQueries * kQueries, p.scale);
  add_key_rows<kD>(sm.plan, sum, p);
}

// --- 4. query rows before and after
// ----------------------------------------------------------------

/// Grid: (query items of 64, B). Zeros for the sums of grad_query, grad_out in bf16.
__global__ void __launch_bounds__(kRowThreads)
    begin_rows_kernel(Common p, float* grad_query, uint16_t* grad_out, const int64_t* first_row,
                      int64_t rows) {
  const Item item = p.items[blockIdx.x];
  const TaskHead& task = p.tasks[item.index];
  const int64_t b = blockIdx.y, begin = int64_t{item.tile} * kQueries;
  const int64_t count = task.count - begin < kQueries ? task.count - begin : kQueries;
  const int64_t to = (b * rows + first_row[item.index] + begin) * p.head_dim;
  const Input from = p.grad_out.data + (b * p.grad_out.batch + task.head * p.grad_out.head +
                                        (task.slot + begin * task.step) * p.grad_out.token);
  const int elements = static_cast<int>(count) * p.head_dim;
  for (int i = threadIdx.x; i < elements; i += kRowThreads) {
    if (grad_query != nullptr) grad_query[to + i] = 0;
    if (grad_out != nullptr)
      grad_out[to + i] =
          float_to_bf16(from[i / p.head_dim * (task.step * p.grad_out.token) + i % p.head_dim]);
  }
}

/// Grid: (query items of 64, B). Sums of grad_query of rotated queries go back to their rows.
__global__ void __launch_bounds__(kRowThreads) end_rows_kernel(Common p, Scratch scratch) {
  const Item item = p.items[blockIdx.x];
  const TaskHead& task = p.tasks[item.index];
  const int64_t b = blockIdx.y, begin = int64_t{item.tile} * kQueries;
  const int64_t count = task.count - begin < kQueries ? task.count - begin : kQueries;
  const float* from =
      scratch.grad_query + (b * scratch.rows + scratch.first_row[item.index] + begin) * p.head_dim;
  float* to = p.grad_query.data + b * p.grad_query.batch + task.head * p.grad_query.head +
              (task.slot + begin * task.step) * p.grad_query.token;
  const int pairs = p.head_dim / 2;
  for (int i = threadIdx.x; i < static_cast<int>(count) * pairs; i += kRowThreads) {
    const int row = i / pairs, d = i % pairs * 2;
    const float2 turn =
        turn_of(p.rotary, 0, task.position + (task.first + begin + row) * p.dilation, d / 2);
    const float2 more =
        turned_back(from[row * p.head_dim + d], from[row * p.head_dim + d + 1], turn);
    float2* const sum = reinterpret_cast<float2*>(to + row * (task.step * p.grad_query.token) + d);
    *sum = make_float2(sum->x + more.x, sum->y + more.y);
  }
}

// --- 5. the host's side
// ----------------------------------------------------------------------------

TableRequest request() {
  TableRequest r;
  r.query_tile = kQueries;
  r.key_tile = kKeys;
  r.gradients = r.pack_keys = r.pack_queries = true;
  return r;
}

/// Where a run's scratch lies in the workspace, behind its tables; whole operands, so that the
/// size does not depend on positions and types.
struct ScratchLayout {
  std::vector<int64_t> first_row;  // [tasks]
  int64_t rows = 0;                // of one sequence
  int64_t first_row_at, grad_query_at, grad_out_at, bytes;

  ScratchLayout(int64_t batch, int64_t head_dim, std::span<const SegmentTask> run) {
    for (const SegmentTask& task : run)
      for (const int64_t count : task.queries.count) {
        first_row.push_back(rows);
        rows += count;
      }
    first_row_at = table_bytes(batch, head_dim, run, request());
    grad_query_at = first_row_at + aligned_bytes(static_cast<int64_t>(first_row.size()) * 8);
    grad_out_at = grad_query_at + aligned_bytes(batch * rows * head_dim * 4);
    bytes = grad_out_at + aligned_bytes(batch * rows * head_dim * 2);
  }
};

template <typename F>
void with_head_dim(int64_t head_dim, F f) {
  switch (head_dim) {
    case 64:
      return f(std::integral_constant<int, 64>{});
    case 80:
      return f(std::integral_constant<int, 80>{});
    case 96:
      return f(std::integral_constant<int, 96>{});
    case 128:
      return f(std::integral_constant<int, 128>{});
  }
  LN_CHECK(false, "head dimension {}", head_dim);
}

void run_backward(Context& context, const AttentionBackward& tensors,
                  const AttentionOptions& options, std::span<const SegmentTask> run,
                  void* workspace) {
  void* const stream = context.stream();
  char* const base = static_cast<char*>(workspace);
  const int64_t batch = tensors.query.shape[0], head_dim = tensors.query.shape[3];
  const ScratchLayout layout(batch, head_dim, run);
  Tables tables(context, tensors.query, run, options, workspace, request());
  tables.set_lse(tensors.lse);
  tables.set_delta(tensors.delta);
  Common common = tables.common;
  common.grad_out = input_rows(tensors.grad_out);
  common.grad_query = rows_of(tensors.grad_query);
  const bool turned = common.rotary.pairs > 0, rounded = !common.grad_out.data.bf16;
  auto* const grad_query = turned ? reinterpret_cast<float*>(base + layout.grad_query_at) : nullptr;
  auto* const grad_out = rounded ? reinterpret_cast<uint16_t*>(base + layout.grad_out_at) : nullptr;
  const Scratch scratch{grad_query, grad_out,
                        reinterpret_cast<const int64_t*>(base + layout.first_row_at), layout.rows};
  const dim3 row_grid = item_grid(tables.query_item_count, batch);
  common.items = tables.query_items;
  if (turned || rounded) {
    upload(context, base + layout.first_row_at, layout.first_row.data(),
           static_cast<int64_t>(layout.first_row.size() * sizeof(int64_t)));
    launch(begin_rows_kernel, row_grid, kRowThreads, 0, stream, common, grad_query, grad_out,
           scratch.first_row, layout.rows);
  }
  common.items = tables.key_items;
  with_head_dim(head_dim, [&](auto width) {
    launch<Carveout::kMostShared>(backward_kernel<width>, item_grid(tables.key_item_count, batch),
                                  kThreads, sizeof(Shared<width>), stream, common, scratch);
  });
  common.items = tables.query_items;
  if (turned) launch(end_rows_kernel, row_grid, kRowThreads, 0, stream, common, scratch);
}

}  // namespace

int64_t native_backward_bytes(const AttentionSize& size, std::span<const SegmentTask> segments) {
  int64_t most = 0;
  for (const std::span<const SegmentTask> run :
       table_runs(size.batch, size.head_dim, segments, request()))
    most = std::max(most, ScratchLayout(size.batch, size.head_dim, run).bytes);
  return most;
}

int64_t native_backward_shared_bytes(int64_t head_dim) {
  int64_t bytes = 0;
  with_head_dim(head_dim, [&](auto width) { bytes = sizeof(Shared<width>); });
  return bytes;
}

void native_backward(Context& context, const AttentionBackward& tensors,
                     const AttentionOptions& options, void* workspace) {
  const int64_t batch = tensors.query.shape[0], head_dim = tensors.query.shape[3];
  for (const std::span<const SegmentTask> run :
       table_runs(batch, head_dim, tensors.segments, request()))
    run_backward(context, tensors, options, run, workspace);
}

}  // namespace longnet::cuda
