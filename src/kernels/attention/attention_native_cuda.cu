// The forward of attention_native.h.
//
// A block owns 128 query rows of one head of one segment, 32 per warp, and goes through the keys
// that they see in tiles of 64 (FlashAttention-2, arXiv 2307.08691). Key and value tiles take turns
// in a ring of slots in shared memory: while one is multiplied, the next ones are copied. Scores
// and weights stay in registers; the branch's result is folded into the running float32 (out, lse)
// at the end. Causal tiles behind a warp's last row are skipped, only those across the diagonal or
// a source's end are masked.
#include "core/context.h"
#include "kernels/attention/attention_native.h"
#include "kernels/attention/attention_native_tile.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/warp.h"

namespace longnet::cuda {
namespace {

using namespace attention;

constexpr int kThreads = 128;
constexpr int kQueryTile = 128, kWarpRows = kQueryTile / (kThreads / 32);
constexpr int kKeyTile = 64;
constexpr int kBlocks = kWarpRows / 16;  // of 16 rows, per warp

/// Slots of the ring, 3 or 4: as many as let two blocks share an SM of 164 KiB.
template <int kD>
constexpr int kSlots = kD == 64 ? 4 : 3;
/// Query fragments stay in registers where there is room for them.
template <int kD>
constexpr bool kQueryInRegisters = kD <= 80;

/// A tile of keys, as rows: [first, first + count) counted from the block's first query row.
struct KeyRows {
  int32_t first, count;
};

/// Where the block's rows lie in out and lse; kept for the end outside of registers.
struct ResultRows {
  int64_t slot, step;  // of the first row, and from row to row
  int32_t head, count;
};

/// The block's queries, as far as keys are chosen by them.
struct QueryRows {
  int64_t first;  // row number
  int32_t count;
  bool causal;

  /// The first so many keys of a source are seen by some of them; may be negative.
  __device__ __forceinline__ int64_t seen(const SourceHead& source) const {
    const int64_t end = first - source.first + count;
    return causal && end < source.count ? end : source.count;
  }
};

/// Keys and values of a source, as far as the block sees them: what of its long description is
/// needed again for every tile.
struct KeyRun {
  const uint16_t* rows[2];  // keys, values
  int64_t step[2];          // from row to row
  int32_t first, count;     // of rows, first counted from the block's first query row
};

template <int kD>
struct ForwardShared {
  Tile<kQueryTile, kD> query;
  Tile<kKeyTile, kD> ring[kSlots<kD>];
  KeyRows keys[kSlots<kD>];
  KeyRun runs[2];     // of sources of which something is seen; they take turns
  int32_t source;     // the next one to look at; of thread 0
  QueryRows queries;  // kept here, too, for the main loop
  ResultRows result;
};

/// Describes the next source that the block sees something of, if there is one. One thread.
template <int kD>
__device__ __forceinline__ void next_run(ForwardShared<kD>& sm, int run, const Common& p,
                                         const TaskHead& task) {
  while (sm.source < task.source_end) {
    const SourceHead& source = p.sources[sm.source++];
    const int64_t seen = sm.queries.seen(source), b = blockIdx.y;
    if (seen <= 0) continue;
    sm.runs[run] = {
        {source.key.half() + b * source.key_batch, source.value.half() + b * source.value_batch},
        {source.key_row, source.value_row},
        static_cast<int32_t>(source.first - sm.queries.first),
        static_cast<int32_t>(seen)};
    return;
  }
}

/// What a thread holds of its warp's rows: row 8 r + lane / 4 is rows' element r.
template <int kD>
struct Running {
  float out[kBlocks][kD / 8][4] = {};
  float peak[2 * kBlocks];  // largest score so far, in units of log 2
  float sum[2 * kBlocks] = {};

  __device__ __forceinline__ Running() {
#pragma unroll
    for (float& x : peak) x = -INFINITY;
  }
};

using Scores = float[kBlocks][kKeyTile / 8][4];
using Weights = uint32_t[kBlocks][kKeyTile / 16][4];

/// Fragments of the warp's query rows: all, where they stay in registers.
template <int kD>
struct QueryFragments {
  uint32_t a[kBlocks][kQueryInRegisters<kD> ? kD / 16 : 1][4];
};

/// scores = query rows of the warp times keys.
template <int kD>
__device__ __forceinline__ void multiply_keys(Scores& scores, const QueryFragments<kD>& query,
                                              const Tile<kQueryTile, kD>& query_tile,
                                              const Tile<kKeyTile, kD>& key_tile, int warp_row) {
#pragma unroll
  for (int m = 0; m < kBlocks; ++m)
#pragma unroll
    for (int n = 0; n < kKeyTile / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[m][n][i] = 0;
  const ColumnsReader<kD> keys(key_tile);
  const RowsReader<kD> queries(query_tile, warp_row);
#pragma unroll
  for (int k = 0; k < kD / 16; ++k) {
    uint32_t a[kBlocks][4];
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      if constexpr (kQueryInRegisters<kD>) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[m][i] = query.a[m][k][i];
      } else {
        queries.a(a[m], 16 * m, 2 * k);
      }
    }
#pragma unroll
    for (int n = 0; n < kKeyTile / 8; n += 2) {
      uint32_t x[4];
      keys.b(x, 8 * n, 2 * k);
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        mma_bf16(scores[m][n], a[m], x[0], x[1]);
        mma_bf16(scores[m][n + 1], a[m], x[2], x[3]);
      }
    }
  }
}

/// -inf where a row of the warp does not see a key. row: of the lane's first row in the block.
__device__ __forceinline__ void mask(Scores& scores, const KeyRows& keys, bool causal, int row) {
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2 * kBlocks; ++r) {
    int seen = row + 8 * r - keys.first + 1;
    if (!causal || seen > keys.count) seen = keys.count;
#pragma unroll
    for (int n = 0; n < kKeyTile / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (8 * n + column + i >= seen) scores[r / 2][n][r % 2 * 2 + i] = -INFINITY;
  }
}

/// Scores become weights 2^(scale score - peak) under the risen peaks, to which the state follows.
template <int kD>
__device__ __forceinline__ void weigh(Running<kD>& state, Weights& weights, Scores& scores,
                                      float scale) {
#pragma unroll
  for (int r = 0; r < 2 * kBlocks; ++r) {
    const int m = r / 2, half = r % 2 * 2;
    float highest = -INFINITY;
#pragma unroll
    for (int n = 0; n < kKeyTile / 8; ++n)
      highest = fmaxf(highest, fmaxf(scores[m][n][half], scores[m][n][half + 1]));
    const float risen = fmaxf(state.peak[r], quad_max(highest) * scale);
    const float base = risen == -INFINITY ? 0.0f : risen;  // nothing seen yet: all weights are 0
    const float kept = fast_exp2(state.peak[r] - base);
    state.peak[r] = risen;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kKeyTile / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float weight = fast_exp2(scores[m][n][half + i] * scale - base);
        scores[m][n][half + i] = weight;
        sum += weight;
      }
    state.sum[r] = state.sum[r] * kept + sum;
#pragma unroll
    for (int n = 0; n < kD / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) state.out[m][n][half + i] *= kept;
  }
#pragma unroll
  for (int m = 0; m < kBlocks; ++m)
#pragma unroll
    for (int k = 0; k < kKeyTile / 16; ++k) {
      a_of_c(weights[m][k], scores[m][2 * k], scores[m][2 * k + 1]);
    }
}

/// out += weights times values.
template <int kD>
__device__ __forceinline__ void multiply_values(Running<kD>& state, const Weights& weights,
                                                const Tile<kKeyTile, kD>& value_tile) {
  const RowsReader<kD> values(value_tile);
#pragma unroll
  for (int k = 0; k < kKeyTile / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kD / 8; n += 2) {
      uint32_t x[4];
      values.b_transposed(x, 16 * k, n);
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        mma_bf16(state.out[m][n], weights[m][k], x[0], x[1]);
        mma_bf16(state.out[m][n + 1], weights[m][k], x[2], x[3]);
      }
    }
  }
}

/// Folds the rows into the running (out, lse): with a the running lse and c this branch's,
/// out' = (exp(a) out + exp(c) o) / (exp(a) + exp(c)), lse' = log of the divisor.
template <int kD>
__device__ __forceinline__ void merge(const Common& p, const ResultRows& rows, int row,
                                      const Running<kD>& state) {
  const int64_t b = blockIdx.y;
  const int quad = static_cast<int>(threadIdx.x) % 4;
  // Loads that do not depend on one another are issued together, ahead of what waits for them: the
  // lse of all rows, then a row's out.
  float sum[2 * kBlocks], old_lse[2 * kBlocks];
  bool valid[2 * kBlocks];
  const auto lse_of = [&](int r) {
    const int64_t slot = rows.slot + (row + 8 * r) * rows.step;
    return p.lse + b * p.lse_batch + rows.head * p.lse_head + slot * p.lse_token;
  };
#pragma unroll
  for (int r = 0; r < 2 * kBlocks; ++r) {
    sum[r] = quad_sum(state.sum[r]);
    valid[r] = row + 8 * r < rows.count && sum[r] != 0.0f;
    old_lse[r] = valid[r] ? *lse_of(r) : 0.0f;
  }
  __syncwarp();  // all lanes of a row have read its lse
#pragma unroll
  for (int r = 0; r < 2 * kBlocks; ++r) {
    if (!valid[r]) continue;
    const float a = old_lse[r], c = state.peak[r] * kLn2 + logf(sum[r]);
    const float top = fmaxf(a, c);
    const float old_weight = expf(a - top), weight = expf(c - top);
    const float both = old_weight + weight, factor = weight / (sum[r] * both);
    const float old_factor = old_weight / both;
    const int64_t slot = rows.slot + (row + 8 * r) * rows.step;
    float* const out =
        p.out.data + b * p.out.batch + slot * p.out.token + rows.head * p.out.head + 2 * quad;
    float2 o[kD / 8] = {};
    if (old_weight != 0.0f) {
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) o[n] = *reinterpret_cast<const float2*>(out + 8 * n);
    }
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      o[n].x = old_factor * o[n].x + factor * state.out[r / 2][n][r % 2 * 2];
      o[n].y = old_factor * o[n].y + factor * state.out[r / 2][n][r % 2 * 2 + 1];
      *reinterpret_cast<float2*>(out + 8 * n) = o[n];
    }
    if (quad == 0) *lse_of(r) = top + logf(both);
  }
}

/// Grid: (items, B).
template <int kD>
__global__ void __launch_bounds__(kThreads, 2) native_forward_kernel(Common p) {
  constexpr int kRing = kSlots<kD>;
  auto& sm = shared<ForwardShared<kD>>();
  const Item item = p.items[blockIdx.x];
  const TaskHead& task = p.tasks[item.index];
  const int64_t b = blockIdx.y, begin = int64_t{item.tile} * kQueryTile;
  const int rows =
      static_cast<int>(task.count - begin < kQueryTile ? task.count - begin : kQueryTile);
  const QueryRows queries{task.first + begin, rows, p.causal};
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * kWarpRows;

  int tiles = 0;
  for (int s = task.source_begin; s < task.source_end; ++s) {
    const int64_t seen = queries.seen(p.sources[s]);
    if (seen > 0) tiles += static_cast<int>((seen + kKeyTile - 1) / kKeyTile);
  }
  if (tiles == 0) return;
  if (threadIdx.x == 0) {
    sm.queries = queries;
    sm.result = {task.slot + begin * task.step, task.step, task.head, rows};
    sm.source = task.source_begin;
    for (int run = 0; run < 2; ++run) next_run(sm, run, p, task);
  }

  const uint16_t* const query = task.query.half() + b * task.query_batch + begin * task.query_row;
  if (task.rotate != 0)
    load_rotated<kThreads>(sm.query, query, task.query_row, rows, p.rotary, 0,
                           task.position + queries.first * p.dilation, p.dilation);
  else
    load_async<kThreads>(sm.query, query, task.query_row, rows);
  // Steps 2 j and 2 j + 1 are keys and values of tile j, in slots of rising number, round and
  // round; kRing - 1 of them are under way. Every step is a group of copies of its own, the last
  // ones empty; the queries are in the first.
  __syncthreads();  // the first two runs are there
  // Of the tile whose keys were started last: its row in the run, and in bit 0 the run.
  int place = -kKeyTile;
  const auto start = [&](bool keys, bool exists, bool first, int slot) {
    if (exists) {
      if (keys) {
        place += kKeyTile;
        if ((place & ~1) >= sm.runs[place & 1].count) place = 1 - (place & 1);
      }
      const int row = place & ~1;
      const KeyRun& from = sm.runs[place & 1];
      const int left = from.count - row, count = left < kKeyTile ? left : kKeyTile;
      if (keys && threadIdx.x == 0) sm.keys[slot] = {from.first + row, count};
      const int64_t step = from.step[keys ? 0 : 1];
      load_async<kThreads>(sm.ring[slot], from.rows[keys ? 0 : 1] + row * step, step, count);
      // A run has begun: the one before has been left by all threads a barrier ago, the next one is
      // begun a barrier ahead.
      if (!keys && !first && row == 0 && threadIdx.x == 0)
        next_run(sm, 1 - (place & 1), p, p.tasks[p.items[blockIdx.x].index]);
    }
    copy_async_commit();
    __syncwarp();  // lane 0 may have been elsewhere; instructions of whole warps follow
  };
#pragma unroll
  for (int step = 0; step < kRing - 1; ++step) start(step % 2 == 0, step / 2 < tiles, true, step);

  const float scale = p.scale * kLog2E;
  Running<kD> state;
  QueryFragments<kD> fragments;
  if constexpr (kQueryInRegisters<kD>) {
    copy_async_wait<kRing - 2>();
    __syncthreads();
    const RowsReader<kD> query_rows(sm.query, warp_row);
#pragma unroll
    for (int m = 0; m < kBlocks; ++m)
#pragma unroll
      for (int k = 0; k < kD / 16; ++k) query_rows.a(fragments.a[m][k], 16 * m, 2 * k);
  }
  const auto before = [](int slot) { return slot == 0 ? kRing - 1 : slot - 1; };
  const auto after = [](int slot) { return slot + 1 == kRing ? 0 : slot + 1; };
  int slot = 0;
  for (; tiles > 0; --tiles) {
    copy_async_wait<kRing - 2>();
    __syncthreads();  // the keys of all threads are there, and the slot before has been used
    start(kRing % 2 == 1, tiles > 1, false, before(slot));
    const KeyRows keys = sm.keys[slot];
    const bool seen =
        warp_row < sm.queries.count && (!p.causal || keys.first < warp_row + kWarpRows);
    Weights weights;
    if (seen) {
      Scores scores;
      multiply_keys(scores, fragments, sm.query, sm.ring[slot], warp_row);
      if (keys.count < kKeyTile || (p.causal && keys.first + kKeyTile > warp_row + 1))
        mask(scores, sm.keys[slot], p.causal, warp_row + lane / 4);
      weigh(state, weights, scores, scale);
    }
    slot = after(slot);
    copy_async_wait<kRing - 2>();
    __syncthreads();
    start(kRing % 2 == 0, tiles > (kRing == 4 ? 2 : 1), false, before(slot));
    if (seen) multiply_values(state, weights, sm.ring[slot]);
    slot = after(slot);
  }
  copy_async_wait<0>();  // the last groups, which are empty
  merge(p, sm.result, warp_row + lane / 4, state);
}

constexpr TableRequest kRequest{.query_tile = kQueryTile, .pack_keys = true};

template <int kD>
void start(Context& context, const Tables& tables, int64_t batch) {
  Common common = tables.common;
  common.items = tables.query_items;
  launch<Carveout::kMostShared>(native_forward_kernel<kD>,
                                item_grid(tables.query_item_count, batch), kThreads,
                                sizeof(ForwardShared<kD>), context.stream(), common);
}

}  // namespace

int64_t native_forward_bytes(const AttentionSize& size, std::span<const SegmentTask> segments) {
  return table_bytes(size.batch, size.head_dim, segments, kRequest);
}

int64_t native_forward_shared_bytes(int64_t head_dim) {
  return head_dim == 64   ? sizeof(ForwardShared<64>)
         : head_dim == 80 ? sizeof(ForwardShared<80>)
         : head_dim == 96 ? sizeof(ForwardShared<96>)
                          : sizeof(ForwardShared<128>);
}

void native_forward(Context& context, const AttentionForward& tensors,
                    const AttentionOptions& options, void* workspace) {
  const int64_t batch = tensors.query.shape[0], head_dim = tensors.query.shape[3];
  const auto run = head_dim == 64   ? start<64>
                   : head_dim == 80 ? start<80>
                   : head_dim == 96 ? start<96>
                                    : start<128>;
  for (const auto segments : table_runs(batch, head_dim, tensors.segments, kRequest)) {
    Tables tables(context, tensors.query, segments, options, workspace, kRequest);
    tables.common.out = rows_of(tensors.out);
    tables.set_lse(tensors.lse);
    run(context, tables, batch);
  }
}

}  // namespace longnet::cuda
