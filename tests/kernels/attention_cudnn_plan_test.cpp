// The decomposition of segments into a library's SDPA problems: every visible pair of query and key
// once, no query row twice in a group, addresses, numbers of calls, bounds.
#include "kernels/attention/attention_cudnn_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "kernels/attention/segment_tasks.h"

namespace longnet::sdpa {
namespace {

/// (task, head, query row, key row), rows in the segment's numbers.
using Pair = std::array<int64_t, 4>;

std::multiset<Pair> visible_pairs(std::span<const SegmentTask> segments, bool causal) {
  std::multiset<Pair> pairs;
  for (size_t t = 0; t < segments.size(); ++t)
    for (size_t h = 0; h < segments[t].queries.count.size(); ++h)
      for (int64_t i = 0; i < segments[t].queries.count[h]; ++i)
        for (const KeySource& source : segments[t].keys)
          for (int64_t j = 0; j < source.rows.count[h]; ++j) {
            const int64_t query = segments[t].queries.first[h] + i, key = source.rows.first[h] + j;
            if (!causal || key <= query) pairs.insert({int64_t(t), int64_t(h), query, key});
          }
  return pairs;
}

std::multiset<Pair> pairs_of(const std::vector<Group>& groups,
                             std::span<const SegmentTask> segments) {
  std::multiset<Pair> pairs;
  for (const Group& group : groups)
    for (const Unit& unit : group.units) {
      std::vector<int64_t> keys;
      for (const KeyPiece& piece : unit.keys)
        for (int64_t j = 0; j < piece.count; ++j)
          keys.push_back(segments[unit.task].keys[piece.source].rows.first[unit.head] +
                         piece.begin + j);
      EXPECT_EQ(int64_t(keys.size()), group.key_rows);
      for (int64_t i = 0; i < group.query_rows; ++i)
        for (int64_t j = 0; j < group.key_rows; ++j)
          if (!group.causal || j <= i)
            pairs.insert({unit.task, unit.head,
                          segments[unit.task].queries.first[unit.head] + unit.query_begin + i,
                          keys[j]});
    }
  return pairs;
}

/// The lists that one rank hands to attention for a branch: local segments, then one per gathered.
std::vector<std::vector<SegmentTask>> task_lists(const SequencePlan& plan, int branch,
                                                 int64_t batch, int64_t head_dim) {
  std::vector<std::vector<SegmentTask>> lists{local_segment_tasks(plan, branch, {}, {}, {}, {})};
  for (const GatheredSegment& gathered : plan.gathered_segments(branch)) {
    const GatherLayout layout(plan, branch, gathered, batch, head_dim);
    lists.push_back({gathered_segment_task(plan, branch, gathered, layout, {}, {})});
  }
  return lists;
}

TEST(AttentionCudnnPlan, EveryVisiblePairOnce) {
  std::mt19937_64 random(1);
  int gathered = 0, several_groups = 0;
  for (int round = 0; round < 300; ++round) {
    const auto pick = [&](int64_t low, int64_t high) {
      return low + int64_t(random() % uint64_t(high - low + 1));
    };
    const int ranks = int(pick(1, 4));
    const int64_t tokens = pick(ranks, 90), heads = pick(1, 6);
    const Branch branch{pick(1, 100), pick(1, 9)};
    const HeadOffset mode = round % 2 == 0 ? HeadOffset::kInterleaved : HeadOffset::kBlocked;
    for (int rank = 0; rank < ranks; ++rank) {
      const SequencePlan plan(tokens, ranks, rank, heads, {branch}, mode);
      for (const std::vector<SegmentTask>& list : task_lists(plan, 0, 1, 8))
        for (const bool causal : {false, true})
          for (const bool in_place : {false, true}) {
            const GroupOptions options{causal, in_place, 1, 8};
            const std::vector<Group> groups = make_groups(list, options);
            ASSERT_EQ(pairs_of(groups, list), visible_pairs(list, causal))
                << "N " << tokens << " H " << heads << " ranks " << ranks << " rank " << rank
                << " branch " << branch.segment_length << ":" << branch.dilation;
            gathered += !list.empty() && list[0].keys.size() > 1;
            several_groups += groups.size() > 1;
            for (const Group& group : groups) {
              ASSERT_GE(group.query_rows, 1);
              ASSERT_GE(group.key_rows, 1);
              ASSERT_EQ(int64_t(group.units.size()), group.tasks() * group.heads);
              std::set<std::pair<int64_t, int64_t>> rows;  // merged and added at once
              for (const Unit& unit : group.units)
                ASSERT_TRUE(rows.insert({unit.task, unit.head}).second);
            }
          }
    }
  }
  EXPECT_GT(gathered, 100);
  EXPECT_GT(several_groups, 100);
}

TEST(AttentionCudnnPlan, RunsOfKeysWithAGapAreGroupsOfTheirOwn) {
  SegmentTask task;
  task.queries = {{0}, {4}, {6}, 1};
  KeySource source;
  source.rows = {{0}, {0}, {3}, 1};
  task.keys.push_back(source);
  source.rows = {{0}, {3}, {2}, 1};  // rows 3, 4: no gap, but over the diagonal's begin
  task.keys.push_back(source);
  source.rows = {{0}, {7}, {9}, 1};  // rows 7 .. 15, of which 7 .. 9 are seen
  task.keys.push_back(source);
  for (const bool causal : {false, true}) {
    const std::vector<Group> groups =
        make_groups({&task, 1}, {.causal = causal, .batch = 1, .head_dim = 8});
    EXPECT_EQ(pairs_of(groups, {&task, 1}), visible_pairs({&task, 1}, causal));
    EXPECT_EQ(groups.size(), causal ? 3u : 2u);
  }
}

TEST(AttentionCudnnPlan, CallsInPlace) {
  // 12 heads over 2 sequences of 4 segments; offsets h mod r. A run of heads is either one offset
  // or heads whose offsets rise with them.
  const std::map<int64_t, size_t> calls{{1, 1}, {2, 2}, {4, 3}, {6, 2}, {12, 1}};
  constexpr int64_t kTokens = 192, kHeads = 12, kDim = 8, kBatch = 2;
  std::vector<bf16> memory(kBatch * kTokens * 3 * kHeads * kDim + 64);
  bf16* begin = memory.data();
  while (reinterpret_cast<uintptr_t>(begin) % 16 != 0) ++begin;
  const auto part = [&](int64_t which) {  // thirds of one fused tensor
    TensorView x(begin + which * kHeads * kDim, DType::kBF16, {kBatch, kTokens, kHeads, kDim});
    x.stride = {kTokens * 3 * kHeads * kDim, 3 * kHeads * kDim, kDim, 1};
    return x;
  };
  for (const auto& [dilation, expected] : calls) {
    const SequencePlan plan(kTokens, 1, 0, kHeads, {{48, dilation}}, HeadOffset::kInterleaved);
    const auto tasks = local_segment_tasks(plan, 0, part(1), part(2), {}, {});
    const auto groups =
        make_groups(tasks, {.causal = true, .in_place = true, .batch = kBatch, .head_dim = kDim});
    EXPECT_EQ(groups.size(), expected) << "dilation " << dilation;
    for (const Group& group : groups) {
      const auto query = queries_in_place(group, tasks, part(0));
      const auto value = keys_in_place(group, tasks, &KeySource::value);
      ASSERT_TRUE(query && value) << dilation;
      for (int64_t n = 0; n < kBatch * group.tasks(); ++n)
        for (int64_t h = 0; h < group.heads; ++h)
          for (int64_t i = 0; i < group.query_rows; ++i) {
            // Batch entries: sequence after sequence, its segments inside.
            const Unit& unit = group.units[n % group.tasks() * group.heads + h];
            const int64_t token = 48 * unit.task + unit.head % dilation + i * dilation;
            const auto address = [&](const InPlace& x) {
              return static_cast<const bf16*>(x.data) + n * x.strides.batch + h * x.strides.head +
                     i * x.strides.row;
            };
            const int64_t at =
                ((n / group.tasks() * kTokens + token) * 3 * kHeads + unit.head) * kDim;
            ASSERT_EQ(address(*query), begin + at) << dilation;
            ASSERT_EQ(address(*value), begin + at + 2 * kHeads * kDim) << dilation;
          }
    }
    // One call where rows are packed: then only counts matter.
    EXPECT_EQ(make_groups(tasks, {.causal = true, .batch = kBatch, .head_dim = kDim}).size(), 1u);
  }
}

TEST(AttentionCudnnPlan, NotInPlace) {
  std::vector<bf16> memory(4096);
  bf16* begin = memory.data();
  while (reinterpret_cast<uintptr_t>(begin) % 16 != 0) ++begin;
  const auto first = [](const SequencePlan& plan, const TensorView& x) {
    const auto tasks = local_segment_tasks(plan, 0, x, x, {}, {});
    const auto groups = make_groups(tasks, {.causal = true, .in_place = true});
    return queries_in_place(groups.back(), tasks, x).has_value();
  };
  const SequencePlan whole(32, 1, 0, 2, {{16, 1}}, HeadOffset::kInterleaved);
  const SequencePlan tail(40, 1, 0, 2, {{16, 1}}, HeadOffset::kInterleaved);
  EXPECT_TRUE(first(whole, TensorView(begin, DType::kBF16, {2, 32, 2, 8})));
  EXPECT_FALSE(first(whole, TensorView(begin, DType::kF32, {1, 32, 2, 8}))) << "not bf16";
  EXPECT_FALSE(first(whole, TensorView(begin + 1, DType::kBF16, {2, 32, 2, 8}))) << "misaligned";
  EXPECT_FALSE(first(whole, TensorView(begin, DType::kBF16, {2, 32, 2, 4}))) << "8 byte rows";
  EXPECT_TRUE(first(tail, TensorView(begin, DType::kBF16, {1, 40, 2, 8})));
  EXPECT_FALSE(first(tail, TensorView(begin, DType::kBF16, {2, 40, 2, 8})))
      << "two full segments of each of two sequences of 2.5 segments: no common stride";
}

TEST(AttentionCudnnPlan, LargeGroupsAreCut) {
  // 64 segments of 8192 rows, 8 heads, D 128: 2^23 elements per segment, 4 segments to a group.
  const SequencePlan plan(64 * 8192, 1, 0, 8, {{8192, 1}}, HeadOffset::kInterleaved);
  const auto tasks = local_segment_tasks(plan, 0, {}, {}, {}, {});
  const GroupOptions options{.causal = true, .in_place = false, .batch = 1, .head_dim = 128};
  const auto groups = make_groups(tasks, options);
  ASSERT_EQ(groups.size(), 16u);
  for (const Group& group : groups) EXPECT_EQ(group.units.size(), 32u);
  const auto bounds = largest_groups(tasks, options);
  ASSERT_EQ(bounds.size(), 1u);
  EXPECT_EQ(bounds[0].units, 512);
  EXPECT_EQ(bounds[0].group_units, 32);
  // Very many very short segments.
  const SequencePlan short_plan(1 << 18, 1, 0, 2, {{4, 1}}, HeadOffset::kInterleaved);
  for (const Group& group : make_groups(local_segment_tasks(short_plan, 0, {}, {}, {}, {}),
                                        {.causal = true, .batch = 2, .head_dim = 8}))
    EXPECT_EQ(group.units.size(), 16384u);
  // A segment that alone is too large: its heads one by one.
  const SequencePlan long_plan(int64_t{1} << 18, 1, 0, 3, {{1 << 18, 1}}, HeadOffset::kInterleaved);
  const auto long_groups = make_groups(local_segment_tasks(long_plan, 0, {}, {}, {}, {}), options);
  ASSERT_EQ(long_groups.size(), 3u);
  EXPECT_EQ(long_groups[0].heads, 1);
}

TEST(AttentionCudnnPlan, BoundsHoldForFewerSegmentsToo) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 100; ++round) {
    const int64_t heads = 1 + int64_t(random() % 7), dilation = 1 + int64_t(random() % 9);
    const int64_t batch = int64_t{1} << (random() % 20);  // groups are cut, too
    const SequencePlan plan(600, 1, 0, heads, {{50 + int64_t(random() % 100), dilation}},
                            HeadOffset::kInterleaved);
    const auto tasks = local_segment_tasks(plan, 0, {}, {}, {}, {});
    std::vector<SegmentTask> some;
    for (const SegmentTask& task : tasks)
      if (random() % 2 == 0) some.push_back(task);
    std::map<std::array<int64_t, 2>, int64_t> most;
    for (const GroupBound& b : largest_groups(tasks, {.batch = batch, .head_dim = 64}))
      most[{b.query_rows, b.key_rows}] = b.group_units;
    for (const bool in_place : {false, true})
      for (const Group& g : make_groups(
               some, {.causal = true, .in_place = in_place, .batch = batch, .head_dim = 64}))
        EXPECT_LE(int64_t(g.units.size()), (most[{g.query_rows, g.key_rows}]));
  }
}

TEST(AttentionCudnnPlan, LibraryWorkspace) {
  Shape s;
  s.batch = 3;
  s.heads = 2;
  s.query_rows = 129;
  s.key_rows = 50;
  s.head_dim = 64;
  EXPECT_EQ(algorithm_workspace_bytes(s), 16 << 20);
  EXPECT_EQ(library_workspace_bytes(s), 16 << 20);
  s.backward = true;
  EXPECT_EQ(algorithm_workspace_bytes(s), (32 << 20) + 6 * 192 * 64 * 4);
  EXPECT_EQ(library_workspace_bytes(s), (32 << 20) + 6 * 192 * (64 + 65) * 4 + 3 * 8);
}

TEST(AttentionCudnnPlan, KnownDefects) {
  const auto defect = [](bool backward, bool causal, int64_t query_rows, int64_t key_rows) {
    Shape s;
    s.backward = backward;
    s.causal = causal;
    s.query_rows = query_rows;
    s.key_rows = key_rows;
    return known_defect(s);
  };
  for (const int64_t keys : {64, 192, 1216}) {
    EXPECT_NE(defect(true, false, 100, keys), "") << keys;
    EXPECT_NE(defect(true, true, keys + 1, keys), "") << "queries below the diagonal's end";
    EXPECT_EQ(defect(true, true, keys, keys), "");
    EXPECT_EQ(defect(false, false, 100, keys), "");
  }
  for (const int64_t keys : {1, 63, 65, 127, 128, 200, 256, 1000})
    EXPECT_EQ(defect(true, false, 100, keys), "") << keys;
  for (const bool causal : {false, true}) {
    EXPECT_NE(defect(true, causal, 1, 128), "");
    EXPECT_EQ(defect(false, causal, 1, 128), "");
  }
}

}  // namespace
}  // namespace longnet::sdpa
