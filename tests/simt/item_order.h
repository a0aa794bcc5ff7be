// The order in which the blocks of a call of attention start: items of Tables
// (kernels/attention/attention_tables_cuda.h) as read back from the device.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "kernels/attention/attention.h"

namespace longnet::simt_test {

/// (head of a segment, tile) of each block, in the order of the grid; tiles of 64 rows. Heads of
/// segments, and their sources, are counted through.
struct ItemOrder {
  std::vector<std::pair<int, int>> queries, keys;
};
ItemOrder item_order(Context& context, const TensorView& query,
                     std::span<const SegmentTask> segments, const AttentionOptions& options,
                     void* workspace);
/// Bytes of the workspace.
int64_t item_order_bytes(const TensorView& query, std::span<const SegmentTask> segments);

}  // namespace longnet::simt_test
