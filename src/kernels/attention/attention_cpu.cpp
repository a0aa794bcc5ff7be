// CPU twin of attention: divides the work among threads, packs rows, and runs the tiles of
// attention_tile.h (compiled per instruction set) on them.
//
// Forward: a piece of work is (segment, sequence, head, run of query rows). It packs the keys in
// chunks of about 128 Ki floats (rotated, [row, Dp]) and runs its queries through each chunk, 64 at
// a time. Backward: a piece is (segment, sequence, head); no two pieces touch the same gradient
// row. If there are too few pieces for the threads, all threads share one piece: each takes every
// T-th key chunk and sums its own part of dq; the parts are added in thread order. So results never
// depend on timing. Memory: a few MB per thread from the workspace. Not done here: argument checks,
// FLOP counts.
#include "kernels/attention/attention_cpu.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/clones.h"
#include "kernels/attention/attention_tile.h"
#include "kernels/cast/cast_cpu.h"

namespace longnet::attention {
namespace {

constexpr int64_t kChunkFloats = 128 * 1024;  // of packed keys: 512 KiB, with values an L2 full
constexpr int64_t kMaxChunkRows = 86 * kTileKeys;
constexpr int64_t kMaxQueryRun = 2048;  // forward: query rows of one piece of work
constexpr int64_t kTeamQueries = 512;   // backward, shared pieces: query rows between barriers
constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

/// Dilated rows lie too far apart for the hardware to foresee: ask for one kPrefetchRows ahead.
/// Inlined by force: a function that only prefetches has no effect that the compiler knows of, and
/// calls of it are dropped.
constexpr int64_t kPrefetchRows = 12;
LN_INLINE void prefetch_bytes(const void* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(row) + at);
}

constexpr int64_t kMaxHeadDim = 256;

int64_t padded_dim(int64_t head_dim) {
  for (int padded : kPaddedDims)
    if (head_dim <= padded) return padded;
  return 0;
}

int64_t key_count(const SegmentTask& task, int64_t h) {
  int64_t count = 0;
  for (const KeySource& source : task.keys) count += source.rows.count[h];
  return count;
}

TileFunctions tile_functions(Isa isa, int64_t padded) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return tile_functions_avx512(static_cast<int>(padded));
    case Isa::kAvx2:
      return tile_functions_avx2(static_cast<int>(padded));
#endif
    default:
      return tile_functions_generic(static_cast<int>(padded));
  }
}

/// Sizes that follow from the segments of one call.
struct Sizes {
  int64_t padded = 0;      // Dp
  int64_t chunk_rows = 0;  // most key rows packed at once, a multiple of kTileKeys
  int64_t max_queries = 0, max_keys = 0;

  Sizes(int64_t head_dim, std::span<const SegmentTask> segments) : padded(padded_dim(head_dim)) {
    for (const SegmentTask& task : segments)
      for (size_t h = 0; h < task.queries.count.size(); ++h) {
        max_queries = std::max(max_queries, task.queries.count[h]);
        max_keys = std::max(max_keys, key_count(task, static_cast<int64_t>(h)));
      }
    const int64_t limit = std::min(round_up(kChunkFloats / padded, kTileKeys), kMaxChunkRows);
    chunk_rows = std::min(limit, round_up(std::max<int64_t>(max_keys, 1), kTileKeys));
  }
};

/// One thread's scratch; with base == nullptr only counts.
struct Scratch {
  float *key, *value, *grad_key, *grad_value;    // [chunk rows, Dp]
  float *query_rows, *query_lanes, *out_lanes;   // [64, Dp] or [Dp, 64]
  float *grad_out_rows, *grad_out_lanes, *rows;  // backward; rows: any tile
  float *score, *grad_score;                     // [48, 64]
  float *peak, *sum;                             // [64]; backward: lse, delta
  float *cosine, *sine;                          // [D / 2]
  float* team_grad_query;                        // [kTeamQueries / 64][Dp, 64]
  int32_t *first, *last;                         // [64]
  int64_t bytes = 0;

  Scratch(char* base, const Sizes& sizes, bool backward) {
    const auto take = [&](auto*& pointer, int64_t count) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + bytes);
      bytes += round_up(count * 4, kAlignment);
    };
    const int64_t chunk = sizes.chunk_rows * sizes.padded, tile = kTileQueries * sizes.padded;
    take(key, chunk);
    take(value, chunk);
    take(query_rows, tile);
    take(query_lanes, tile);
    take(out_lanes, tile);
    take(rows, tile);
    take(score, kTileKeys * kTileQueries);
    for (float** vector : {&peak, &sum}) take(*vector, kTileQueries);
    for (float** vector : {&cosine, &sine}) take(*vector, sizes.padded / 2);
    take(first, kTileQueries);
    take(last, kTileQueries);
    grad_key = grad_value = grad_out_rows = grad_out_lanes = grad_score = team_grad_query = nullptr;
    if (!backward) return;
    take(grad_key, chunk);
    take(grad_value, chunk);
    take(grad_out_rows, tile);
    take(grad_out_lanes, tile);
    take(grad_score, kTileKeys * kTileQueries);
    take(team_grad_query, kTeamQueries * sizes.padded);
  }
};

/// The part of one KeySource that falls into a chunk of the concatenated key rows.
struct KeyRun {
  const KeySource* source;
  int64_t in_chunk, in_source, count;
};

/// One segment, sequence and head: turns row numbers into pointers, key numbers and positions.
class Piece {
 public:
  Piece(const SegmentTask& task, const AttentionOptions& options, const TensorView& query,
        const Sizes& sizes, int64_t b, int64_t h)
      : task_(task),
        options_(options),
        rotary_(options.rotary != nullptr && options.rotary->enabled() ? options.rotary : nullptr),
        b_(b),
        h_(h),
        head_dim_(query.shape[3]),
        padded_(sizes.padded),
        base_(task.segment.begin + options.head_offset[h]),
        queries_(task.queries.count[h]),
        keys_(key_count(task, h)) {
    // Chunks of equal size: 2050 keys are 2 x 1056, not 2064 - and - a sliver.
    const int64_t chunks = std::max<int64_t>(1, ceil_div(keys_, sizes.chunk_rows));
    chunk_rows_ = round_up(std::max<int64_t>(1, ceil_div(keys_, chunks)), kTileKeys);
  }

  int64_t queries() const { return queries_; }
  int64_t keys() const { return keys_; }
  int64_t chunk_rows() const { return chunk_rows_; }

  /// Row of a strided f32 [B, S, H, D] tensor.
  float* row(const TensorView& x, int64_t slot) const {
    return static_cast<float*>(x.data) + offset(x, slot);
  }
  /// Row of an f32 or bf16 tensor, widened into buffer [D] if need be.
  const float* read(const TensorView& x, int64_t slot, float* buffer) const {
    return cpu::read_row(x, offset(x, slot), head_dim_, buffer);
  }
  LN_INLINE void prefetch_row(const TensorView& x, int64_t slot) const {
    const int64_t size = dtype_size(x.dtype);
    prefetch_bytes(static_cast<const char*>(x.data) + offset(x, slot) * size, head_dim_ * size);
  }
  int64_t query_slot(int64_t i) const { return task_.queries.slot[h_] + i * task_.queries.step; }
  /// Element of [B, H, L].
  float& at(const TensorView& x, int64_t slot) const {
    return static_cast<float*>(x.data)[b_ * x.stride[0] + h_ * x.stride[1] + slot * x.stride[2]];
  }

  /// Keys [begin, end) of the concatenated sources that query i sees.
  void visible(int64_t i, int64_t& begin, int64_t& end) const {
    begin = 0;
    end = keys_;
    if (options_.causal) end = keys_up_to(task_.queries.first[h_] + i);
    if (options_.first_visible.defined())
      begin = keys_up_to(rows_before(limit(options_.first_visible, i)) - 1);
    if (options_.last_visible.defined()) {
      const int64_t token = limit(options_.last_visible, i);
      end = std::min(end, keys_up_to(rows_before(std::min(token, task_.segment.end) + 1) - 1));
    }
    end = std::max(begin, end);
  }

  /// Queries see the keys from the first one on, later queries at least as many.
  bool seen_grows() const {
    return !options_.first_visible.defined() && !options_.last_visible.defined();
  }

  /// Mask of up to 64 queries from i0 on against keys [chunk_begin, chunk_begin + chunk_count).
  /// False: none of them sees any.
  bool mask(int64_t i0, int64_t count, int64_t chunk_begin, int64_t chunk_count,
            const Scratch& scratch, TileMask& mask) const {
    int64_t lowest = INT64_MAX, highest = -1, low_full = 0, high_full = INT64_MAX;
    if (seen_grows()) {
      // The common case: later queries see more, from the first key on.
      int64_t begin, least, most;
      visible(i0, begin, least);
      visible(i0 + count - 1, begin, most);
      if (least - chunk_begin >= chunk_count || (least == most && least > chunk_begin)) {
        const int32_t end = static_cast<int32_t>(std::min(least - chunk_begin, chunk_count));
        std::fill_n(scratch.first, kTileQueries, 0);
        std::fill_n(scratch.last, kTileQueries, end - 1);
        mask = {scratch.first, scratch.last, 0, end, 0, end};
        return true;
      }
      if (most <= chunk_begin) return false;
    }
    for (int64_t i = 0; i < count; ++i) {
      int64_t begin, end;
      visible(i0 + i, begin, end);
      begin = std::max<int64_t>(begin - chunk_begin, 0);
      end = std::min(end - chunk_begin, chunk_count);
      scratch.first[i] = static_cast<int32_t>(begin < end ? begin : 0);
      scratch.last[i] = static_cast<int32_t>(begin < end ? end - 1 : -1);
      low_full = std::max(low_full, begin < end ? begin : chunk_count);
      high_full = std::min(high_full, begin < end ? end : 0);
      if (begin >= end) continue;
      lowest = std::min(lowest, begin);
      highest = std::max(highest, end);
    }
    if (highest < 0) return false;
    std::fill(scratch.first + count, scratch.first + kTileQueries, scratch.first[count - 1]);
    std::fill(scratch.last + count, scratch.last + kTileQueries, scratch.last[count - 1]);
    mask.first = scratch.first;
    mask.last = scratch.last;
    mask.begin = static_cast<int32_t>(lowest / kTileRows * kTileRows);
    mask.end = static_cast<int32_t>(highest);
    mask.full_begin = static_cast<int32_t>(low_full);
    mask.full_end = static_cast<int32_t>(high_full);
    return true;
  }

  /// Calls f(KeyRun) for the sources that overlap keys [begin, begin + count).
  template <typename F>
  void for_runs(int64_t begin, int64_t count, F f) const {
    int64_t source_begin = 0;
    for (const KeySource& source : task_.keys) {
      const int64_t source_end = source_begin + source.rows.count[h_];
      const int64_t from = std::max(begin, source_begin);
      const int64_t to = std::min(begin + count, source_end);
      if (from < to) f(KeyRun{&source, from - begin, from - source_begin, to - from});
      source_begin = source_end;
    }
  }

  /// Packs keys (rotated) and values of [begin, begin + count), zero rows up to a whole register
  /// tile.
  void pack_keys(int64_t begin, int64_t count, const Scratch& scratch,
                 RotaryTable::Cursor& cursor) const {
    float buffer[kMaxHeadDim];
    for_runs(begin, count, [&](const KeyRun& run) {
      const HeadRows& rows = run.source->rows;
      for (int64_t i = 0; i < run.count; ++i) {
        const int64_t slot = rows.slot[h_] + (run.in_source + i) * rows.step;
        const int64_t to = (run.in_chunk + i) * padded_;
        if (i + kPrefetchRows < run.count) {
          prefetch_row(run.source->key, slot + kPrefetchRows * rows.step);
          prefetch_row(run.source->value, slot + kPrefetchRows * rows.step);
        }
        const float* key_row = read(run.source->key, slot, buffer);
        if (rotary_ != nullptr && !run.source->positions_applied) {
          turn(rows.first[h_] + run.in_source + i, true, scratch, cursor);
          rotate_row(scratch.key + to, key_row, scratch.cosine, scratch.sine, head_dim_ / 2);
        } else {
          std::memcpy(scratch.key + to, key_row, head_dim_ * sizeof(float));
        }
        if (run.source->value.dtype == DType::kF32)
          std::memcpy(scratch.value + to, row(run.source->value, slot), head_dim_ * sizeof(float));
        else
          read(run.source->value, slot, scratch.value + to);
        std::fill(scratch.key + to + head_dim_, scratch.key + to + padded_, 0.0f);
        std::fill(scratch.value + to + head_dim_, scratch.value + to + padded_, 0.0f);
      }
    });
    const int64_t end = round_up(count, kTileRows) * padded_;
    std::fill(scratch.key + count * padded_, scratch.key + end, 0.0f);
    std::fill(scratch.value + count * padded_, scratch.value + end, 0.0f);
  }

  /// Rotates back and adds the packed gradients of keys [begin, begin + count).
  void unpack_key_gradients(int64_t begin, int64_t count, const Scratch& scratch,
                            RotaryTable::Cursor& cursor) const {
    for_runs(begin, count, [&](const KeyRun& run) {
      const HeadRows& rows = run.source->rows;
      for (int64_t i = 0; i < run.count; ++i) {
        const int64_t slot = rows.slot[h_] + (run.in_source + i) * rows.step;
        float* packed = scratch.grad_key + (run.in_chunk + i) * padded_;
        if (i + kPrefetchRows < run.count) {
          prefetch_row(run.source->grad_key, slot + kPrefetchRows * rows.step);
          prefetch_row(run.source->grad_value, slot + kPrefetchRows * rows.step);
        }
        float* grad_key_row = row(run.source->grad_key, slot);
        // ds q holds the queries' scale log2(e).
        for (int64_t d = 0; d < head_dim_; ++d) packed[d] *= static_cast<float>(kLn2);
        if (rotary_ != nullptr && !run.source->positions_applied) {
          turn(rows.first[h_] + run.in_source + i, true, scratch, cursor);
          rotate_row_transposed_add(grad_key_row, packed, scratch.cosine, scratch.sine,
                                    head_dim_ / 2);
        } else {
          for (int64_t d = 0; d < head_dim_; ++d) grad_key_row[d] += packed[d];
        }
        const float* grad_value = scratch.grad_value + (run.in_chunk + i) * padded_;
        float* grad_value_row = row(run.source->grad_value, slot);
        for (int64_t d = 0; d < head_dim_; ++d) grad_value_row[d] += grad_value[d];
      }
    });
  }

  /// rows [64, Dp] = queries i0 .., rotated, times factor; rows without a query are zero.
  void pack_queries(float* rows, const TensorView& query, int64_t i0, int64_t count, float factor,
                    const Scratch& scratch, RotaryTable::Cursor& cursor) const {
    float buffer[kMaxHeadDim];
    for (int64_t i = 0; i < count; ++i) {
      const float* query_row = read(query, query_slot(i0 + i), buffer);
      if (i + kPrefetchRows < count) prefetch_row(query, query_slot(i0 + i + kPrefetchRows));
      float* packed = rows + i * padded_;
      if (rotary_ != nullptr) {
        turn(task_.queries.first[h_] + i0 + i, false, scratch, cursor);
        rotate_row(packed, query_row, scratch.cosine, scratch.sine, head_dim_ / 2);
        for (int64_t d = 0; d < head_dim_; ++d) packed[d] *= factor;
      } else {
        for (int64_t d = 0; d < head_dim_; ++d) packed[d] = query_row[d] * factor;
      }
      std::fill(packed + head_dim_, packed + padded_, 0.0f);
    }
    std::fill(rows + count * padded_, rows + kTileQueries * padded_, 0.0f);
  }

  /// Asks for rows [i0, i1) of a tensor that will be needed a little later.
  void prefetch_rows(const TensorView& x, int64_t i0, int64_t i1) const {
    for (int64_t i = i0; i < i1; ++i) prefetch_row(x, query_slot(i));
  }

  /// Rows to prefetch for the next tile while this one is computed: rows [i0, i1), at most 64.
  AheadRows ahead(const TensorView& query, const TensorView& out, int64_t i0, int64_t i1) const {
    const int64_t rows = std::min<int64_t>(i1 - i0, kTileQueries);
    if (rows <= 0) return {};
    AheadRows result{};
    result.rows = static_cast<int32_t>(rows);
    for (int k = 0; k < 2; ++k) {
      const TensorView& x = k == 0 ? query : out;
      const int64_t size = dtype_size(x.dtype);
      result.first[k] = static_cast<const char*>(x.data) +
                        (b_ * x.stride[0] + query_slot(i0) * x.stride[1] + h_ * x.stride[2]) * size;
      result.step[k] = task_.queries.step * x.stride[1] * size;
      result.row_bytes[k] = static_cast<int32_t>(head_dim_ * size);
    }
    return result;
  }

  /// grad_query rows i0 .. += rotated back factor * rows [64, Dp], which is overwritten.
  void add_query_gradients(const TensorView& grad_query, float* rows, int64_t i0, int64_t count,
                           float factor, const Scratch& scratch,
                           RotaryTable::Cursor& cursor) const {
    for (int64_t i = 0; i < count; ++i) {
      float* grad_row = row(grad_query, query_slot(i0 + i));
      float* packed = rows + i * padded_;
      for (int64_t d = 0; d < head_dim_; ++d) packed[d] *= factor;
      if (rotary_ != nullptr) {
        turn(task_.queries.first[h_] + i0 + i, false, scratch, cursor);
        rotate_row_transposed_add(grad_row, packed, scratch.cosine, scratch.sine, head_dim_ / 2);
      } else {
        for (int64_t d = 0; d < head_dim_; ++d) grad_row[d] += packed[d];
      }
    }
  }

  int64_t head_dim() const { return head_dim_; }
  int64_t padded() const { return padded_; }
  int64_t position(int64_t row) const { return base_ + row * options_.dilation - task_.origin; }

 private:
  int64_t offset(const TensorView& x, int64_t slot) const {
    return b_ * x.stride[0] + slot * x.stride[1] + h_ * x.stride[2];
  }
  void turn(int64_t row, bool key, const Scratch& scratch, RotaryTable::Cursor& cursor) const {
    rotary_->factors(position(row), key, cursor, scratch.cosine, scratch.sine);
  }
  /// Keys with a row number <= row.
  int64_t keys_up_to(int64_t row) const {
    int64_t count = 0;
    for (const KeySource& source : task_.keys)
      count += std::clamp<int64_t>(row - source.rows.first[h_] + 1, 0, source.rows.count[h_]);
    return count;
  }
  /// Rows of the segment whose token is below `token`.
  int64_t rows_before(int64_t token) const {
    token = std::min(token, task_.segment.end);
    return token <= base_ ? 0 : ceil_div(token - base_, options_.dilation);
  }
  int64_t limit(const TensorView& x, int64_t i) const {
    return static_cast<const int64_t*>(x.data)[b_ * x.stride[0] + query_slot(i) * x.stride[1]];
  }

  const SegmentTask& task_;
  const AttentionOptions& options_;
  const RotaryTable* rotary_;
  int64_t b_, h_, head_dim_, padded_;
  int64_t base_;  // token of row 0
  int64_t queries_, keys_, chunk_rows_;
};

/// Lowest and highest key that queries [i0, i1) see; false: none.
bool key_range(const Piece& piece, int64_t i0, int64_t i1, int64_t& begin, int64_t& end) {
  begin = INT64_MAX;
  end = 0;
  for (int64_t i = piece.seen_grows() ? i1 - 1 : i0; i < i1; ++i) {
    int64_t from, to;
    piece.visible(i, from, to);
    if (from >= to) continue;
    begin = std::min(begin, from);
    end = std::max(end, to);
  }
  return begin < end;
}

/// Queries [i0, i0 + count) of a piece against one packed chunk: reads and writes (out, lse).
void forward_tile(const Piece& piece, const AttentionForward& tensors, float scale, int64_t i0,
                  int64_t count, const TileMask& mask, const AheadRows& ahead,
                  const TileFunctions& functions, const Scratch& scratch,
                  RotaryTable::Cursor& cursor) {
  const int padded = static_cast<int>(piece.padded());
  const int64_t head_dim = piece.head_dim();
  piece.pack_queries(scratch.query_rows, tensors.query, i0, count,
                     static_cast<float>(scale * kLog2E), scratch, cursor);
  functions.transpose(scratch.query_lanes, scratch.query_rows, kTileQueries, padded);
  // The running (o, lse) is the state after keys whose weights sum to 2^(lse log2(e)). An integer
  // peak and a sum in [1, 2) represent it without losing digits of a large lse.
  bool any = false;
  for (int64_t i = 0; i < kTileQueries; ++i) {
    scratch.peak[i] = -INFINITY;
    scratch.sum[i] = 0;
    if (i >= count) continue;
    const int64_t slot = piece.query_slot(i0 + i);
    const float lse = piece.at(tensors.lse, slot);
    if (lse == -INFINITY) continue;
    if (!any) std::fill_n(scratch.rows, kTileQueries * piece.padded(), 0.0f);
    any = true;
    const double lse2 = lse * kLog2E;
    scratch.peak[i] = static_cast<float>(std::floor(lse2));
    scratch.sum[i] = static_cast<float>(std::exp2(lse2 - std::floor(lse2)));
    const float* out_row = piece.row(tensors.out, slot);
    float* packed = scratch.rows + i * piece.padded();
    for (int64_t d = 0; d < head_dim; ++d) packed[d] = out_row[d] * scratch.sum[i];
  }
  if (any)
    functions.transpose(scratch.out_lanes, scratch.rows, kTileQueries, padded);
  else
    std::fill_n(scratch.out_lanes, kTileQueries * piece.padded(), 0.0f);
  functions.forward({scratch.query_lanes, scratch.key, scratch.value, scratch.out_lanes,
                     scratch.peak, scratch.sum, scratch.score, mask, ahead});
  functions.transpose(scratch.rows, scratch.out_lanes, padded, kTileQueries);
  for (int64_t i = 0; i < count; ++i) {
    if (scratch.sum[i] == 0) continue;  // saw no key: o and lse stay
    const int64_t slot = piece.query_slot(i0 + i);
    piece.at(tensors.lse, slot) = static_cast<float>(
        (static_cast<double>(scratch.peak[i]) + std::log2(static_cast<double>(scratch.sum[i]))) *
        kLn2);
    const float inverse = 1.0f / scratch.sum[i];
    float* out_row = piece.row(tensors.out, slot);
    const float* packed = scratch.rows + i * piece.padded();
    for (int64_t d = 0; d < head_dim; ++d) out_row[d] = packed[d] * inverse;
  }
}

}  // namespace

int64_t cpu_workspace_bytes(const Context& context, int64_t head_dim,
                            std::span<const SegmentTask> segments, bool backward) {
  return context.threads() * Scratch(nullptr, Sizes(head_dim, segments), backward).bytes;
}

void cpu_forward(Context& context, const AttentionForward& tensors, const AttentionOptions& options,
                 void* workspace) {
  const Sizes sizes(tensors.query.shape[3], tensors.segments);
  if (sizes.max_queries == 0 || sizes.max_keys == 0) return;
  const TileFunctions functions = tile_functions(context.isa(), sizes.padded);
  const int64_t batch = tensors.query.shape[0], heads = tensors.query.shape[2];
  const int64_t segments = static_cast<int64_t>(tensors.segments.size());
  // Runs of query rows so that there are 4 pieces a thread, but rather 256 rows than fewer, since
  // each piece packs its keys.
  const int64_t triples = segments * batch * heads;
  const int threads = context.threads();
  int64_t run = round_up(std::min(sizes.max_queries, kMaxQueryRun), kTileQueries);
  const auto pieces = [&] { return triples * ceil_div(sizes.max_queries, run); };
  while (run > 256 && pieces() < 4 * threads) run = round_up(run / 2, kTileQueries);
  while (run > kTileQueries && pieces() < threads) run = round_up(run / 2, kTileQueries);
  const int64_t runs = ceil_div(sizes.max_queries, run);

#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
    char* base = static_cast<char*>(workspace);
    base += thread * Scratch(nullptr, sizes, false).bytes;
    const Scratch scratch(base, sizes, false);
    RotaryTable::Cursor cursor;
    // The last runs come first: under the causal mask they are the longest.
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < triples * runs; ++item) {
      const int64_t h = item % heads, b = item / heads % batch;
      const int64_t segment = item / heads / batch % segments;
      const int64_t i_begin = (runs - 1 - item / triples) * run;
      const Piece piece(tensors.segments[segment], options, tensors.query, sizes, b, h);
      const int64_t i_end = std::min(i_begin + run, piece.queries());
      int64_t key_begin, key_end;
      if (i_begin >= i_end || !key_range(piece, i_begin, i_end, key_begin, key_end)) continue;
      const int64_t chunk_rows = piece.chunk_rows();
      for (int64_t chunk = key_begin / chunk_rows * chunk_rows; chunk < key_end;
           chunk += chunk_rows) {
        const int64_t count = std::min(chunk_rows, key_end - chunk);
        piece.prefetch_rows(tensors.query, i_begin, std::min(kTileQueries + i_begin, i_end));
        piece.pack_keys(chunk, count, scratch, cursor);
        for (int64_t i = i_begin; i < i_end; i += kTileQueries) {
          const int64_t tile = std::min<int64_t>(kTileQueries, i_end - i);
          TileMask mask;
          if (!piece.mask(i, tile, chunk, count, scratch, mask)) continue;
          forward_tile(piece, tensors, options.scale, i, tile, mask,
                       piece.ahead(tensors.query, tensors.out, i + tile, i_end), functions, scratch,
                       cursor);
          if (thread == 0) context.progress();
        }
      }
      if (thread == 0) context.progress();
    }
  }
  context.progress();  // once at least, also where the other threads took every piece
}

void cpu_delta(Context& context, const TensorView& delta, const TensorView& grad_out,
               const TensorView& out) {
  const int64_t batch = out.shape[0], tokens = out.shape[1], heads = out.shape[2];
  const int64_t head_dim = out.shape[3];
#pragma omp parallel for collapse(2) schedule(static) \
    num_threads(context.threads()) if (out.elements() > 65536)
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t h = 0; h < heads; ++h) {
        float buffer[kMaxHeadDim];
        const auto row = [&](const TensorView& x) {
          const int64_t offset = b * x.stride[0] + t * x.stride[1] + h * x.stride[2];
          return cpu::read_row(x, offset, head_dim, buffer);
        };
        const float* grad_out_row = row(grad_out);
        const float* out_row = row(out);  // always f32: the buffer stays grad_out's
        float parts[8] = {};              // independent sums: the compiler may use vectors
        int64_t d = 0;
        for (; d + 8 <= head_dim; d += 8)
          for (int k = 0; k < 8; ++k) parts[k] += grad_out_row[d + k] * out_row[d + k];
        for (; d < head_dim; ++d) parts[0] += grad_out_row[d] * out_row[d];
        static_cast<float*>(
            delta.data)[b * delta.stride[0] + h * delta.stride[1] + t * delta.stride[2]] =
            ((parts[0] + parts[4]) + (parts[1] + parts[5])) +
            ((parts[2] + parts[6]) + (parts[3] + parts[7]));
      }
}

namespace {

/// Queries [i0, i0 + count) against one packed chunk; adds to the chunk's gradients and to
/// grad_query_lanes [Dp, 64] (without scale).
void backward_tile(const Piece& piece, const AttentionBackward& tensors, float scale, int64_t i0,
                   int64_t count, const TileMask& mask, const TileFunctions& functions,
                   float* grad_query_lanes, const Scratch& scratch, RotaryTable::Cursor& cursor) {
  const int padded = static_cast<int>(piece.padded());
  const int64_t head_dim = piece.head_dim();
  piece.prefetch_rows(tensors.grad_out, i0, i0 + count);
  piece.pack_queries(scratch.query_rows, tensors.query, i0, count,
                     static_cast<float>(scale * kLog2E), scratch, cursor);
  functions.transpose(scratch.query_lanes, scratch.query_rows, kTileQueries, padded);
  std::fill_n(scratch.grad_out_rows, kTileQueries * piece.padded(), 0.0f);
  for (int64_t i = 0; i < kTileQueries; ++i) {
    scratch.peak[i] = INFINITY;  // lse of a query without keys: weights 2^(s - inf) = 0
    scratch.sum[i] = 0;
    if (i >= count) continue;
    const int64_t slot = piece.query_slot(i0 + i);
    const float lse = piece.at(tensors.lse, slot);
    if (lse == -INFINITY) continue;
    scratch.peak[i] = static_cast<float>(lse * kLog2E);
    scratch.sum[i] = piece.at(tensors.delta, slot);
    float* packed = scratch.grad_out_rows + i * piece.padded();
    const float* grad_out_row = piece.read(tensors.grad_out, slot, packed);
    if (grad_out_row != packed) std::memcpy(packed, grad_out_row, head_dim * sizeof(float));
  }
  functions.transpose(scratch.grad_out_lanes, scratch.grad_out_rows, kTileQueries, padded);
  functions.backward({scratch.query_lanes, scratch.query_rows, scratch.grad_out_lanes,
                      scratch.grad_out_rows, scratch.peak, scratch.sum, scratch.key, scratch.value,
                      grad_query_lanes, scratch.grad_key, scratch.grad_value, scratch.score,
                      scratch.grad_score, mask});
}

void clear_key_gradients(const Piece& piece, int64_t count, const Scratch& scratch) {
  const int64_t floats = round_up(count, kTileRows) * piece.padded();
  std::fill_n(scratch.grad_key, floats, 0.0f);
  std::fill_n(scratch.grad_value, floats, 0.0f);
}

}  // namespace

void cpu_backward(Context& context, const AttentionBackward& tensors,
                  const AttentionOptions& options, void* workspace) {
  const Sizes sizes(tensors.query.shape[3], tensors.segments);
  if (sizes.max_queries == 0 || sizes.max_keys == 0) return;
  const TileFunctions functions = tile_functions(context.isa(), sizes.padded);
  const int64_t batch = tensors.query.shape[0], heads = tensors.query.shape[2];
  const int64_t segments = static_cast<int64_t>(tensors.segments.size());
  const int64_t pieces = segments * batch * heads;
  const int64_t threads = context.threads();
  // Whole pieces keep at least 3/4 of the threads busy from 3 pieces a thread on.
  const bool shared = pieces < 3 * threads && pieces % threads != 0;
  const int64_t scratch_bytes = Scratch(nullptr, sizes, true).bytes;
  char* base = static_cast<char*>(workspace);

#pragma omp parallel num_threads(static_cast <int>(threads))
  {
    const int thread = omp_get_thread_num();
    const int team = omp_get_num_threads();
    const Scratch scratch(base + thread * scratch_bytes, sizes, true);
    RotaryTable::Cursor cursor;
    const int64_t tile_floats = kTileQueries * sizes.padded;
    const auto make_piece = [&](int64_t item) {
      return Piece(tensors.segments[item / heads / batch], options, tensors.query, sizes,
                   item / heads % batch, item % heads);
    };
    if (!shared) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t item = 0; item < pieces; ++item) {
        const Piece piece = make_piece(item);
        int64_t key_begin, key_end;
        if (!key_range(piece, 0, piece.queries(), key_begin, key_end)) continue;
        const int64_t chunk_rows = piece.chunk_rows();
        for (int64_t chunk = key_begin / chunk_rows * chunk_rows; chunk < key_end;
             chunk += chunk_rows) {
          const int64_t count = std::min(chunk_rows, key_end - chunk);
          piece.pack_keys(chunk, count, scratch, cursor);
          clear_key_gradients(piece, count, scratch);
          for (int64_t i = 0; i < piece.queries(); i += kTileQueries) {
            const int64_t tile = std::min<int64_t>(kTileQueries, piece.queries() - i);
            TileMask mask;
            if (!piece.mask(i, tile, chunk, count, scratch, mask)) continue;
            std::fill_n(scratch.out_lanes, tile_floats, 0.0f);
            backward_tile(piece, tensors, options.scale, i, tile, mask, functions,
                          scratch.out_lanes, scratch, cursor);
            functions.transpose(scratch.rows, scratch.out_lanes, static_cast<int>(sizes.padded),
                                kTileQueries);
            piece.add_query_gradients(tensors.grad_query, scratch.rows, i, tile, options.scale,
                                      scratch, cursor);
            if (thread == 0) context.progress();
          }
          piece.unpack_key_gradients(chunk, count, scratch, cursor);
        }
        if (thread == 0) context.progress();
      }
    } else {
      for (int64_t item = 0; item < pieces; ++item) {
        const Piece piece = make_piece(item);
        const int64_t share = round_up(ceil_div(piece.keys(), 4 * team), kTileKeys);
        const int64_t chunk_rows = std::clamp(std::max<int64_t>(share, 2 * kTileKeys),
                                              int64_t{kTileKeys}, sizes.chunk_rows);
        for (int64_t i_begin = 0; i_begin < piece.queries(); i_begin += kTeamQueries) {
          const int64_t i_end = std::min(i_begin + kTeamQueries, piece.queries());
          int64_t key_begin = 0, key_end = 0;
          const bool any = key_range(piece, i_begin, i_end, key_begin, key_end);
          std::fill_n(scratch.team_grad_query, kTeamQueries * sizes.padded, 0.0f);
          const int64_t first_chunk = any ? key_begin / chunk_rows : 0;
          for (int64_t c = first_chunk + thread; any && c * chunk_rows < key_end; c += team) {
            const int64_t chunk = c * chunk_rows;
            const int64_t count = std::min(chunk_rows, key_end - chunk);
            piece.pack_keys(chunk, count, scratch, cursor);
            clear_key_gradients(piece, count, scratch);
            for (int64_t i = i_begin; i < i_end; i += kTileQueries) {
              const int64_t tile = std::min<int64_t>(kTileQueries, i_end - i);
              TileMask mask;
              if (!piece.mask(i, tile, chunk, count, scratch, mask)) continue;
              backward_tile(piece, tensors, options.scale, i, tile, mask, functions,
                            scratch.team_grad_query + (i - i_begin) * sizes.padded, scratch,
                            cursor);
            }
            piece.unpack_key_gradients(chunk, count, scratch, cursor);
            if (thread == 0) context.progress();
          }
#pragma omp barrier
          // dq of each tile: the threads' parts in thread order.
          for (int64_t i = i_begin + thread * kTileQueries; any && i < i_end;
               i += team * kTileQueries) {
            std::fill_n(scratch.out_lanes, tile_floats, 0.0f);
            for (int64_t other = 0; other < team; ++other) {
              const Scratch theirs(base + other * scratch_bytes, sizes, true);
              const float* part = theirs.team_grad_query + (i - i_begin) * sizes.padded;
              for (int64_t k = 0; k < tile_floats; ++k) scratch.out_lanes[k] += part[k];
            }
            functions.transpose(scratch.rows, scratch.out_lanes, static_cast<int>(sizes.padded),
                                kTileQueries);
            piece.add_query_gradients(tensors.grad_query, scratch.rows, i,
                                      std::min<int64_t>(kTileQueries, i_end - i), options.scale,
                                      scratch, cursor);
          }
#pragma omp barrier
        }
        if (thread == 0) context.progress();
      }
    }
  }
  context.progress();
}

namespace {

/// Calls f(b, h, chunk row, token slot, position) for every kept row, heads divided among threads.
template <typename F>
void for_rows(Context& context, int64_t batch, const HeadRows& rows,
              std::span<const int64_t> chunk_slot, const SegmentTask& task,
              const AttentionOptions& options, F f) {
  const int64_t heads = static_cast<int64_t>(rows.count.size());
#pragma omp parallel num_threads(context.threads())
  {
    RotaryTable::Cursor cursor;
#pragma omp for schedule(static)
    for (int64_t item = 0; item < batch * heads; ++item) {
      const int64_t b = item / heads, h = item % heads;
      for (int64_t i = 0; i < rows.count[h]; ++i) {
        const int64_t token =
            task.segment.begin + options.head_offset[h] + (rows.first[h] + i) * options.dilation;
        f(b, h, chunk_slot[h] + i, rows.slot[h] + i * rows.step, token - task.origin, cursor);
      }
      if (omp_get_thread_num() == 0) context.progress();
    }
  }
}

float* row4(const TensorView& x, int64_t b, int64_t slot, int64_t h) {
  return static_cast<float*>(x.data) + b * x.stride[0] + slot * x.stride[1] + h * x.stride[2];
}
float* row3(const TensorView& x, int64_t b, int64_t slot) {
  return static_cast<float*>(x.data) + b * x.stride[0] + slot * x.stride[1];
}

constexpr int64_t kMaxPairs = kMaxHeadDim / 2;

}  // namespace

void cpu_pack_rows(Context& context, const TensorView& chunk_key, const TensorView& chunk_value,
                   const TensorView& key, const TensorView& value, const HeadRows& rows,
                   std::span<const int64_t> chunk_slot, const SegmentTask& task,
                   const AttentionOptions& options) {
  const int64_t head_dim = key.shape[3];
  const bool rotate = options.rotary != nullptr && options.rotary->enabled();
  for_rows(context, key.shape[0], rows, chunk_slot, task, options,
           [&](int64_t b, int64_t h, int64_t chunk_row, int64_t slot, int64_t position,
               RotaryTable::Cursor& cursor) {
             float in_buffer[kMaxHeadDim], out_buffer[kMaxHeadDim];
             const auto copy = [&](const TensorView& chunk, const TensorView& x, bool rotated) {
               const int64_t to = b * chunk.stride[0] + chunk_row * chunk.stride[1];
               const int64_t from = b * x.stride[0] + slot * x.stride[1] + h * x.stride[2];
               const float* row = cpu::read_row(x, from, head_dim, in_buffer);
               float* place = cpu::place_of_row(chunk, to, out_buffer);
               if (rotated) {
                 float cosine[kMaxPairs], sine[kMaxPairs];
                 options.rotary->factors(position, true, cursor, cosine, sine);
                 rotate_row(place, row, cosine, sine, head_dim / 2);
               } else {
                 std::memcpy(place, row, head_dim * sizeof(float));
               }
               cpu::write_row(chunk, to, head_dim, place);
             };
             copy(chunk_key, key, rotate);
             copy(chunk_value, value, false);
           });
}

void cpu_unpack_rows_add(Context& context, const TensorView& grad_key, const TensorView& grad_value,
                         const TensorView& chunk_grad_key, const TensorView& chunk_grad_value,
                         const HeadRows& rows, std::span<const int64_t> chunk_slot,
                         const SegmentTask& task, const AttentionOptions& options) {
  const int64_t head_dim = grad_key.shape[3];
  const bool rotate = options.rotary != nullptr && options.rotary->enabled();
  for_rows(context, grad_key.shape[0], rows, chunk_slot, task, options,
           [&](int64_t b, int64_t h, int64_t chunk_row, int64_t slot, int64_t position,
               RotaryTable::Cursor& cursor) {
             const float* chunk_row_key = row3(chunk_grad_key, b, chunk_row);
             float* grad_key_row = row4(grad_key, b, slot, h);
             if (rotate) {
               float cosine[kMaxPairs], sine[kMaxPairs];
               options.rotary->factors(position, true, cursor, cosine, sine);
               rotate_row_transposed_add(grad_key_row, chunk_row_key, cosine, sine, head_dim / 2);
             } else {
               for (int64_t d = 0; d < head_dim; ++d) grad_key_row[d] += chunk_row_key[d];
             }
             const float* chunk_row_value = row3(chunk_grad_value, b, chunk_row);
             float* grad_value_row = row4(grad_value, b, slot, h);
             for (int64_t d = 0; d < head_dim; ++d) grad_value_row[d] += chunk_row_value[d];
           });
}

}  // namespace longnet::attention
