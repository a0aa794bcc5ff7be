// The order of blocks: falling work if causal, over all heads and segments that an L2 cache holds.
#include "simt/device_values.h"
#include "simt/item_order.h"
#include "simt/support.h"

namespace longnet::simt_test {
namespace {

/// Segments of 256 tokens, heads of width 128. Nothing reads rows, so all lie at the same place.
ItemOrder order_of(int segments, int64_t heads, bool causal) {
  const DeviceValues row(DType::kBF16, 128);
  TensorView rows = row.view({1, 1, 1, 128});
  rows.shape[1] = 256 * segments;
  rows.shape[2] = heads;
  const std::vector<int64_t> offsets(heads, 0);
  std::vector<SegmentTask> tasks;
  for (int i = 0; i < segments; ++i) {
    SegmentTask task;
    task.segment.begin = 256 * i;
    task.segment.end = 256 * (i + 1);
    task.queries.slot.assign(heads, 256 * i);
    task.queries.first.assign(heads, 0);
    task.queries.count.assign(heads, 256);
    task.keys.push_back({rows, rows, {}, {}, task.queries});
    tasks.push_back(task);
  }
  AttentionOptions options;
  options.head_offset = offsets;
  options.causal = causal;
  Context context = gpu_context();
  const DeviceValues workspace(DType::kBF16, item_order_bytes(rows, tasks) / 2);
  return item_order(context, rows, tasks, options, workspace.data());
}

TEST(ItemOrder, LongestFirstIfCausal) {
  ItemOrder expected;
  for (int step = 0; step < 4; ++step)
    for (int head = 0; head < 6; ++head) {
      expected.queries.emplace_back(head, 3 - step);  // later queries see more keys
      expected.keys.emplace_back(head, step);         // earlier keys are seen by more queries
    }
  const ItemOrder order = order_of(2, 3, true);
  EXPECT_EQ(order.queries, expected.queries);
  EXPECT_EQ(order.keys, expected.keys);
}

TEST(ItemOrder, HeadByHeadIfFull) {
  const ItemOrder order = order_of(2, 3, false);
  ASSERT_EQ(order.queries.size(), 24u);
  ASSERT_EQ(order.keys.size(), 24u);
  for (int i = 0; i < 24; ++i) {
    EXPECT_EQ(order.queries[i].first, i / 4);
    EXPECT_EQ(order.keys[i], std::pair(i / 4, i % 4));
  }
}

TEST(ItemOrder, HeadsThatL2DoesNotHoldAreNotMixed) {
  // 128 KiB of keys and values a head: 256 heads are 32 MiB.
  const ItemOrder order = order_of(1, 300, true);
  ASSERT_EQ(order.queries.size(), 1200u);
  for (int i = 0; i < 1200; ++i) {
    const int in_group = i < 1024 ? i : i - 1024, heads = i < 1024 ? 256 : 44;
    const int head = i / 1024 * 256 + in_group % heads;
    EXPECT_EQ(order.queries[i], std::pair(head, 3 - in_group / heads));
    EXPECT_EQ(order.keys[i], std::pair(head, in_group / heads));
  }
}

}  // namespace
}  // namespace longnet::simt_test
