// See attention_tables_cuda.h.
#include <algorithm>
#include <numeric>

#include "core/alignment.h"
#include "core/context.h"
#include "core/upload_ring.h"
#include "kernels/attention/attention_pack_cuda.h"
#include "kernels/attention/attention_tables_cuda.h"
#include "kernels/cuda/launch.h"

namespace longnet::cuda::attention {
namespace {

constexpr int kThreads = 128;

/// Grid: (coarse_count + kFine, 2 sets).
__global__ void __launch_bounds__(kThreads)
    rotary_table_kernel(double2* coarse, double2* fine, int64_t coarse_first, int coarse_count,
                        int pairs, Frequencies f) {
  const int set = blockIdx.y, i = blockIdx.x;
  for (int pair = threadIdx.x; pair < pairs; pair += kThreads) {
    if (i < coarse_count)
      coarse[(int64_t{set} * coarse_count + i) * pairs + pair] =
          turn_in_double(f, pair, (coarse_first + i) * kFine, set == 1);
    else
      fine[(int64_t{set} * kFine + i - coarse_count) * pairs + pair] =
          turn_in_double(f, pair, i - coarse_count, set == 1);
  }
}

int64_t tiles(int64_t rows, int64_t tile) { return (rows + tile - 1) / tile; }

/// Rows of one sequence that a segment packs if there are positions.
struct PackedCounts {
  int64_t keys = 0, queries = 0;

  PackedCounts(const SegmentTask& task, const TableRequest& request) {
    if (request.pack_queries)
      for (const int64_t count : task.queries.count) queries += count;
    if (request.pack_keys)
      for (const KeySource& source : task.keys)
        if (!source.positions_applied)
          for (const int64_t count : source.rows.count) keys += count;
  }
};

/// Where things lie in the workspace.
struct Layout {
  int64_t tasks = 0, sources = 0, query_items = 0, key_items = 0;  // counts
  int64_t packed_keys = 0, packed_queries = 0;                     // rows of one sequence
  int64_t tensors = 0, spans = 0;
  int64_t coarse_first = 0, coarse_count = 0;
  int64_t source_at, query_item_at, key_item_at, coarse_at, fine_at, tensor_at, span_at;
  int64_t packed_key_at, packed_query_at, bytes = 0;

  Layout(int64_t batch, int64_t head_dim, std::span<const SegmentTask> segments,
         const TableRequest& request) {
    int64_t lowest = INT64_MAX, highest = INT64_MIN;
    for (const SegmentTask& task : segments) {
      tasks += static_cast<int64_t>(task.queries.count.size());
      for (int64_t count : task.queries.count) query_items += tiles(count, request.query_tile);
      for (const KeySource& source : task.keys) {
        sources += static_cast<int64_t>(source.rows.count.size());
        if (request.key_tile > 0)
          for (int64_t count : source.rows.count) key_items += tiles(count, request.key_tile);
        if (request.pack_keys) ++tensors;
      }
      const PackedCounts packed(task, request);
      packed_keys += packed.keys;
      packed_queries += packed.queries;
      lowest = std::min(lowest, task.segment.begin - task.origin);
      highest = std::max(highest, task.segment.end - 1 - task.origin);
    }
    if (request.pack_keys) spans += sources;
    if (request.pack_queries) ++tensors, spans += tasks;
    if (lowest <= highest) {
      coarse_first = lowest >> 8;
      coarse_count = (highest >> 8) - coarse_first + 1;
    }
    take(tasks, sizeof(TaskHead));
    source_at = take(sources, sizeof(SourceHead));
    query_item_at = take(query_items, sizeof(Item));
    key_item_at = take(key_items, sizeof(Item));
    const int64_t pair_bytes = 2 * (head_dim / 2) * static_cast<int64_t>(sizeof(double2));
    coarse_at = take(coarse_count, pair_bytes);
    fine_at = take(kFine, pair_bytes);
    tensor_at = take(tensors, sizeof(StridedRows));
    span_at = take(spans, sizeof(RowSpan));
    packed_key_at = take(batch * packed_keys, 2 * head_dim);
    packed_query_at = take(batch * packed_queries, 2 * head_dim);
  }

 private:
  /// Where the next `count` things begin.
  int64_t take(int64_t count, int64_t size) {
    const int64_t begin = bytes;
    bytes += aligned_bytes(count * size);
    return begin;
  }
};

float* floats(const TensorView& view) { return static_cast<float*>(view.data); }

StridedRows strided(const TensorView& view) {
  return {view.data, view.stride[0], view.stride[1], view.stride[2], 1};
}

/// Rows to be packed, of queries or of keys.
struct PackList {
  std::vector<RowSpan> spans;
  int64_t rows = 0, longest = 0;

  /// Returns the packed row of the span's first.
  int64_t add(const HeadRows& from, int64_t head, int64_t position, int64_t source) {
    const int64_t begin = rows, count = from.count[head];
    if (count == 0) return begin;
    LN_CHECK(count <= INT32_MAX, "{} rows of one head", count);
    spans.push_back({from.slot[head], from.step, position, begin, static_cast<int32_t>(head),
                     static_cast<int32_t>(source), static_cast<int32_t>(count)});
    rows += count;
    longest = std::max(longest, count);
    return begin;
  }
};

/// Items in the order in which their blocks start.
class ItemList {
 public:
  /// work: rows that the block goes through.
  void add(size_t index, int64_t tile, int64_t work) {
    items_.push_back({static_cast<int32_t>(index), static_cast<int32_t>(tile)});
    work_.push_back(work / 64);
  }
  /// Those with most work first among the items added since the last call; equals stay in order.
  void sort_group() {
    if (work_.empty()) return;
    const int64_t most = *std::max_element(work_.begin(), work_.end());
    std::vector<size_t> place(most + 2);  // element most - w: of the next item of work w
    for (const int64_t work : work_) ++place[most - work + 1];
    std::partial_sum(place.begin(), place.end(), place.begin());
    const size_t first = items_.size() - work_.size();
    const std::vector<Item> unsorted(items_.begin() + first, items_.end());
    for (size_t i = 0; i < unsorted.size(); ++i)
      items_[first + place[most - work_[i]]++] = unsorted[i];
    work_.clear();
  }
  const std::vector<Item>& items() const { return items_; }

 private:
  std::vector<Item> items_;
  std::vector<int64_t> work_;  // of the last items, in units small enough to tell tiles apart
};

/// Builds the lists of a call, in host memory.
struct Builder {
  std::vector<TaskHead> tasks;
  std::vector<SourceHead> sources;
  ItemList query_items, key_items;
  std::vector<StridedRows> key_tensors;
  PackList keys, queries;

  Builder(const TensorView& query, std::span<const SegmentTask> segments,
          const AttentionOptions& options, const TableRequest& request, const Layout& layout,
          char* base)
      : query_(query), options_(options), request_(request), layout_(layout), base_(base) {
    turned_ = options.rotary != nullptr && options.rotary->enabled();
    for (const SegmentTask& task : segments) {
      const int64_t first_tensor = static_cast<int64_t>(key_tensors.size());
      if (packs_keys())
        for (const KeySource& source : task.keys) key_tensors.push_back(strided(source.key));
      for (int64_t h = 0; h < query.shape[2]; ++h) {
        // Blocks of a causal segment differ in work. If the longest start first, none of them is
        // left over when all others are done; heads whose keys and values would push one another
        // out of the L2 cache are still not mixed.
        if (options.causal) begin_head(task, h);
        add(task, h, first_tensor);
      }
    }
    if (options.causal) sort_group();
  }

  bool turned() const { return turned_; }
  bool packs_keys() const { return turned_ && request_.pack_keys; }
  bool packs_queries() const { return turned_ && request_.pack_queries; }

 private:
  /// Heads whose blocks may run in any order: as many neighbours as an L2 cache holds.
  static constexpr int64_t kGroupBytes = int64_t{32} << 20;
  void begin_head(const SegmentTask& task, int64_t h) {
    int64_t bytes = 0;
    for (const KeySource& source : task.keys)
      bytes += source.rows.count[h] * 2 * query_.shape[3] * dtype_size(source.key.dtype);
    if (group_bytes_ + bytes > kGroupBytes) sort_group();
    group_bytes_ += bytes;
  }
  void sort_group() {
    query_items.sort_group();
    key_items.sort_group();
    group_bytes_ = 0;
  }

  void add(const SegmentTask& task, int64_t h, int64_t first_tensor) {
    const int32_t index = static_cast<int32_t>(tasks.size());
    const HeadRows& rows = task.queries;
    TaskHead t{};
    t.slot = rows.slot[h];
    t.step = rows.step;
    t.first = rows.first[h];
    t.count = rows.count[h];
    t.token = task.segment.begin + options_.head_offset[h];
    t.position = t.token - task.origin;
    t.head = static_cast<int32_t>(h);
    t.query = input(query_) + (h * query_.stride[2] + t.slot * query_.stride[1]);
    t.query_batch = query_.stride[0];
    t.query_row = t.step * query_.stride[1];
    t.rotate = turned_;
    if (packs_queries()) {
      const int64_t row = queries.add(rows, h, t.position + t.first * options_.dilation, 0);
      place(t.query, t.query_batch, t.query_row, layout_.packed_query_at, row,
            layout_.packed_queries);
      t.rotate = 0;
    }
    t.source_begin = static_cast<int32_t>(sources.size());
    for (size_t k = 0; k < task.keys.size(); ++k)
      add(t, task.keys[k], h, index, first_tensor + static_cast<int64_t>(k));
    t.source_end = static_cast<int32_t>(sources.size());
    for (int64_t tile = tiles(t.count, request_.query_tile) - 1; tile >= 0; --tile) {
      const int64_t end = t.first + std::min(t.count, (tile + 1) * request_.query_tile);
      int64_t keys = 0;  // seen, if causal
      for (int32_t k = t.source_begin; k < t.source_end; ++k)
        keys += std::clamp<int64_t>(end - sources[k].first, 0, sources[k].count);
      query_items.add(tasks.size(), tile, keys);
    }
    tasks.push_back(t);
  }

  void add(const TaskHead& t, const KeySource& k, int64_t h, int32_t task, int64_t tensor) {
    SourceHead s{};
    const auto first = [&](const TensorView& view) {
      return h * view.stride[2] + k.rows.slot[h] * view.stride[1];
    };
    s.key = input(k.key) + first(k.key);
    s.value = input(k.value) + first(k.value);
    s.key_batch = k.key.stride[0];
    s.value_batch = k.value.stride[0];
    s.key_row = k.rows.step * k.key.stride[1];
    s.value_row = k.rows.step * k.value.stride[1];
    if (request_.gradients) {
      s.grad_key = floats(k.grad_key) + first(k.grad_key);
      s.grad_value = floats(k.grad_value) + first(k.grad_value);
      s.grad_key_batch = k.grad_key.stride[0];
      s.grad_value_batch = k.grad_value.stride[0];
      s.grad_key_row = k.rows.step * k.grad_key.stride[1];
      s.grad_value_row = k.rows.step * k.grad_value.stride[1];
    }
    s.first = k.rows.first[h];
    s.count = k.rows.count[h];
    s.task = task;
    s.rotate = s.rotate_back = turned_ && !k.positions_applied;
    if (s.rotate && packs_keys()) {
      const int64_t row = keys.add(k.rows, h, t.position + s.first * options_.dilation, tensor);
      place(s.key, s.key_batch, s.key_row, layout_.packed_key_at, row, layout_.packed_keys);
      s.rotate = 0;
    }
    if (request_.key_tile > 0 && t.count > 0)
      for (int64_t tile = 0; tile < tiles(s.count, request_.key_tile); ++tile) {
        // Queries, if causal: all but those before the tile's first key.
        const int64_t before = s.first + tile * request_.key_tile - t.first;
        key_items.add(sources.size(), tile, t.count - std::clamp<int64_t>(before, 0, t.count));
      }
    sources.push_back(s);
  }

  /// Leads rows to packed row `row` of every sequence.
  void place(Input& data, int64_t& batch, int64_t& step, int64_t at, int64_t row,
             int64_t rows_per_sequence) const {
    const int64_t head_dim = query_.shape[3];
    data = Input{base_ + at, true} + row * head_dim;
    batch = rows_per_sequence * head_dim;
    step = head_dim;
  }

  const TensorView& query_;
  const AttentionOptions& options_;
  const TableRequest& request_;
  const Layout& layout_;
  char* const base_;
  bool turned_ = false;
  int64_t group_bytes_ = 0;
};

}  // namespace

int64_t table_bytes(int64_t batch, int64_t head_dim, std::span<const SegmentTask> segments,
                    const TableRequest& request) {
  int64_t most = 0;
  for (const std::span<const SegmentTask> run : table_runs(batch, head_dim, segments, request))
    most = std::max(most, Layout(batch, head_dim, run, request).bytes);
  return most;
}

std::vector<std::span<const SegmentTask>> table_runs(int64_t batch, int64_t head_dim,
                                                     std::span<const SegmentTask> segments,
                                                     const TableRequest& request) {
  std::vector<std::span<const SegmentTask>> runs;
  size_t begin = 0;
  int64_t bytes = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    const PackedCounts packed(segments[i], request);
    const int64_t more = batch * head_dim * 2 * (packed.keys + packed.queries);
    if (i > begin && bytes + more > kPackedBytes) {
      runs.push_back(segments.subspan(begin, i - begin));
      begin = i;
      bytes = 0;
    }
    bytes += more;
  }
  if (begin < segments.size()) runs.push_back(segments.subspan(begin));
  return runs;
}

Frequencies frequencies_of(const AttentionOptions& options, int64_t head_dim) {
  Frequencies f{};
  if (options.rotary == nullptr || !options.rotary->enabled()) return f;
  const RotaryOptions& o = options.rotary->options();
  const double width = static_cast<double>(head_dim);
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    f.angle[i] = std::pow(o.base, -2.0 * static_cast<double>(i) / width);
    if (o.position == Position::kXpos)
      f.log_z[i] = std::log((2.0 * static_cast<double>(i) + 0.4 * width) / (1.4 * width)) /
                   o.xpos_scale_base;
  }
  return f;
}

Tables::Tables(Context& context, const TensorView& query, std::span<const SegmentTask> segments,
               const AttentionOptions& options, void* workspace, const TableRequest& request) {
  void* stream = context.stream();
  const int64_t batch = query.shape[0], head_dim = query.shape[3];
  const Layout layout(batch, head_dim, segments, request);
  char* base = static_cast<char*>(workspace);
  const Builder built(query, segments, options, request, layout, base);
  query_item_count = static_cast<int64_t>(built.query_items.items().size());
  key_item_count = static_cast<int64_t>(built.key_items.items().size());
  const auto upload = [&](int64_t offset, const auto& list) {
    longnet::upload(context, base + offset, list.data(),
                    static_cast<int64_t>(list.size() * sizeof(list[0])));
  };
  upload(0, built.tasks);
  upload(layout.source_at, built.sources);
  upload(layout.query_item_at, built.query_items.items());
  upload(layout.key_item_at, built.key_items.items());
  common.tasks = reinterpret_cast<const TaskHead*>(base);
  common.sources = reinterpret_cast<const SourceHead*>(base + layout.source_at);
  query_items = reinterpret_cast<const Item*>(base + layout.query_item_at);
  key_items = reinterpret_cast<const Item*>(base + layout.key_item_at);
  if (built.turned()) {
    auto* coarse = reinterpret_cast<double2*>(base + layout.coarse_at);
    auto* fine = reinterpret_cast<double2*>(base + layout.fine_at);
    common.rotary = {coarse, fine, layout.coarse_first, static_cast<int32_t>(layout.coarse_count),
                     static_cast<int32_t>(head_dim / 2)};
    launch(rotary_table_kernel, dim3(static_cast<unsigned>(layout.coarse_count + kFine), 2),
           kThreads, 0, stream, coarse, fine, layout.coarse_first,
           static_cast<int>(layout.coarse_count), static_cast<int>(head_dim / 2),
           frequencies_of(options, head_dim));
  }
  // Packed rows: all spans behind one another, keys first; likewise the tensors they are read from.
  std::vector<StridedRows> tensors = built.key_tensors;
  if (built.packs_queries()) tensors.push_back(strided(query));
  std::vector<RowSpan> spans = built.keys.spans;
  spans.insert(spans.end(), built.queries.spans.begin(), built.queries.spans.end());
  upload(layout.tensor_at, tensors);
  upload(layout.span_at, spans);
  const auto pack = [&](const PackList& list, size_t first_span, size_t first_tensor, int64_t to,
                        int64_t rows_per_sequence, DType type, bool key) {
    if (list.spans.empty()) return;
    const SpanList on_device{
        reinterpret_cast<const RowSpan*>(base + layout.span_at) + first_span,
        reinterpret_cast<const StridedRows*>(base + layout.tensor_at) + first_tensor,
        1,
        static_cast<int64_t>(list.spans.size()),
        list.longest,
        batch,
        rows_per_sequence,
        head_dim};
    sdpa_pack_rows(context, base + to, on_device, type, {options.rotary, key, options.dilation});
  };
  pack(built.keys, 0, 0, layout.packed_key_at, layout.packed_keys, DType::kBF16, true);
  pack(built.queries, built.keys.spans.size(), built.key_tensors.size(), layout.packed_query_at,
       layout.packed_queries, query.dtype, false);
  const TensorView &first = options.first_visible, &last = options.last_visible;
  common.first_visible = static_cast<const int64_t*>(first.data);
  common.last_visible = static_cast<const int64_t*>(last.data);
  common.first_batch = first.stride[0];
  common.first_token = first.stride[1];
  common.last_batch = last.stride[0];
  common.last_token = last.stride[1];
  common.dilation = options.dilation;
  common.scale = options.scale;
  common.head_dim = static_cast<int32_t>(head_dim);
  common.causal = options.causal;
}

void Tables::set_lse(const TensorView& lse) {
  common.lse = floats(lse);
  common.lse_batch = lse.stride[0];
  common.lse_head = lse.stride[1];
  common.lse_token = lse.stride[2];
}

void Tables::set_delta(const TensorView& delta) {
  common.delta = floats(delta);
  common.delta_batch = delta.stride[0];
  common.delta_head = delta.stride[1];
  common.delta_token = delta.stride[2];
}

dim3 item_grid(int64_t items, int64_t batch) {
  LN_CHECK(items <= INT32_MAX && batch <= 65535, "{} tiles of {} sequences in one launch", items,
           batch);
  return dim3(static_cast<unsigned>(items), static_cast<unsigned>(batch));
}

}  // namespace longnet::cuda::attention
