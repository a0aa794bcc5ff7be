// See item_order.h.
#include "simt/item_order.h"

#include "kernels/attention/attention_tables_cuda.h"
#include "kernels/cuda/stream.h"
#include "simt/device_values.h"

namespace longnet::simt_test {

ItemOrder item_order(const TensorView& query, std::span<const SegmentTask> segments,
                     const AttentionOptions& options) {
  using namespace longnet::cuda;
  Context context = gpu_context();
  const attention::TableRequest request{.query_tile = 64, .key_tile = 64};
  const DeviceValues workspace(
      DType::kBF16,
      attention::table_bytes(query.shape[0], query.shape[3], segments, request) / 2);
  const attention::Tables tables(context, query, segments, options, workspace.data(), request);
  const auto read = [&](const attention::Item* items, int64_t count) {
    std::vector<attention::Item> list(count);
    copy_to_host(list.data(), items, count * sizeof(attention::Item), context_stream(context));
    std::vector<std::pair<int, int>> pairs;
    for (const attention::Item& item : list) pairs.emplace_back(item.index, item.tile);
    return pairs;
  };
  return {read(tables.query_items, tables.query_item_count),
          read(tables.key_items, tables.key_item_count)};
}

}  // namespace longnet::simt_test
