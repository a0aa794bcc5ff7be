// See item_order.h.
#include "core/context.h"
#include "kernels/attention/attention_tables_cuda.h"
#include "kernels/cuda/launch.h"
#include "simt/item_order.h"

namespace longnet::simt_test {
namespace {

using namespace longnet::cuda;

constexpr attention::TableRequest kRequest{.query_tile = 64, .key_tile = 64};

std::vector<std::pair<int, int>> read(Context& context, const attention::Item* items,
                                      int64_t count) {
  std::vector<attention::Item> list(count);
  copy_to_host(list.data(), items, count * sizeof(attention::Item), context.stream());
  std::vector<std::pair<int, int>> pairs;
  for (const attention::Item& item : list) pairs.emplace_back(item.index, item.tile);
  return pairs;
}

}  // namespace

int64_t item_order_bytes(const TensorView& query, std::span<const SegmentTask> segments) {
  return attention::table_bytes(query.shape[0], query.shape[3], segments, kRequest);
}

ItemOrder item_order(Context& context, const TensorView& query,
                     std::span<const SegmentTask> segments, const AttentionOptions& options,
                     void* workspace) {
  const attention::Tables tables(context, query, segments, options, workspace, kRequest);
  return {read(context, tables.query_items, tables.query_item_count),
          read(context, tables.key_items, tables.key_item_count)};
}

}  // namespace longnet::simt_test
