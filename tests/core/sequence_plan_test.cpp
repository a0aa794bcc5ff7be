// SequencePlan against its definition, token by token, over all small cases; and sizes near the
// limit of int64_t.
#include "core/sequence_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <set>

namespace longnet::test {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

// The definition, written once more without a thought for speed.
int64_t defined_offset(int64_t h, int64_t heads, int64_t r, HeadOffset mode) {
  if (mode == HeadOffset::kInterleaved) return h % r;
  int64_t per_offset = 1;  // ceil(H / r)
  while (per_offset * r < heads) ++per_offset;
  return h / per_offset;
}

struct Definition {
  int64_t tokens, ranks, heads, w, r, shard;
  HeadOffset mode;

  int owner(int64_t token) const { return static_cast<int>(token / shard); }
  bool kept(int64_t token, int64_t head) const {
    return token % w % r == defined_offset(head, heads, r, mode);
  }
  std::vector<Segment> segments() const {
    std::vector<Segment> all;
    for (int64_t begin = 0; begin < tokens; begin += w)
      all.push_back({begin, std::min(tokens, begin + w)});
    return all;
  }
  /// Row numbers of the kept tokens of one segment, head and rank.
  std::vector<int64_t> rows(const Segment& segment, int rank, int64_t head) const {
    std::vector<int64_t> mine;
    int64_t row = 0;
    for (int64_t t = segment.begin; t < segment.end; ++t) {
      if (!kept(t, head)) continue;
      if (owner(t) == rank) mine.push_back(row);
      ++row;
    }
    return mine;
  }
};

void check_rows(const SequencePlan& plan, const Definition& d, const Segment& segment, int rank) {
  for (int64_t h = 0; h < d.heads; ++h) {
    const std::vector<int64_t> expected = d.rows(segment, rank, h);
    const RowRange rows = plan.rows(0, segment, rank, h);
    ASSERT_EQ(rows.count, static_cast<int64_t>(expected.size()));
    for (int64_t i = 0; i < rows.count; ++i) ASSERT_EQ(rows.first + i, expected[i]);
  }
}

void check_layout(const SequencePlan& plan, const Definition& d, const GatheredSegment& gathered) {
  const GatherLayout layout(plan, 0, gathered, 3, 5);
  ASSERT_EQ(layout.mine, plan.rank() - gathered.first_rank);
  ASSERT_EQ(layout.ranks(), gathered.ranks());
  int64_t elements = 0, kept = 0;
  for (int member = 0; member < gathered.ranks(); ++member) {
    int64_t slot = 0;
    for (int64_t h = 0; h < d.heads; ++h) {
      ASSERT_EQ(layout.row_slot(member)[h], slot);
      slot += layout.rows(member, h).count;
    }
    ASSERT_EQ(layout.chunk_rows(member), slot);
    ASSERT_EQ(layout.chunk_begin(member), elements);
    elements += 2 * 3 * slot * 5;
    kept += slot;
    ASSERT_EQ(layout.chunk_elements(member), 2 * 3 * slot * 5);
  }
  ASSERT_EQ(layout.elements(), elements);
  for (int end = 2; end < gathered.ranks(); ++end) {
    for (int64_t h = 0; h < d.heads; ++h) {
      const RowRange joined = layout.rows(1, end, h);
      ASSERT_EQ(joined.count, layout.rows(1, 2, h).count + layout.rows(2, end, h).count);
      if (joined.count > 0 && layout.rows(1, h).count > 0) {
        ASSERT_EQ(joined.first, layout.rows(1, h).first);
      }
    }
    ASSERT_EQ(layout.chunk_rows(1, end) * 2 * 3 * 5,
              layout.chunk_begin(end) - layout.chunk_begin(1));
  }
  int64_t defined = 0;
  for (int64_t h = 0; h < d.heads; ++h)
    for (int64_t t = gathered.segment.begin; t < gathered.segment.end; ++t) defined += d.kept(t, h);
  ASSERT_EQ(kept, defined);  // every kept token exactly once over the ranks
}

void check_case(const Definition& d) {
  const std::vector<Segment> segments = d.segments();
  std::map<int64_t, int> seen_local;               // segment begin -> times
  std::map<int64_t, std::set<int>> seen_gathered;  // segment begin -> ranks
  std::map<int64_t, int64_t> numbers;              // segment begin -> number
  int64_t straddling = 0;
  for (const Segment& segment : segments)
    if (d.owner(segment.begin) != d.owner(segment.end - 1)) numbers[segment.begin] = straddling++;
  int64_t covered = 0;
  for (int rank = 0; rank < d.ranks; ++rank) {
    const SequencePlan plan(d.tokens, static_cast<int>(d.ranks), rank, d.heads, {{d.w, d.r}},
                            d.mode);
    ASSERT_EQ(plan.shard_length(), d.shard);
    ASSERT_EQ(plan.straddling_segments(0), straddling);
    covered += plan.local_tokens();
    for (int64_t t = plan.local_begin(); t < plan.end_of(rank); ++t) ASSERT_EQ(d.owner(t), rank);
    for (int64_t h = 0; h < d.heads; ++h)
      ASSERT_EQ(plan.head_offsets(0)[h], defined_offset(h, d.heads, d.r, d.mode));
    std::vector<Segment> listed;
    for (const SegmentClass& c : plan.local_classes(0))
      for (int64_t i = 0; i < c.count; ++i)
        listed.push_back({c.first.begin + i * d.w, c.first.end + i * d.w});
    ASSERT_EQ(listed, plan.local_segments(0));
    ASSERT_EQ(plan.local_segment_count(0), static_cast<int64_t>(listed.size()));
    for (const Segment& segment : plan.local_segments(0)) {
      ASSERT_NE(std::find(segments.begin(), segments.end(), segment), segments.end());
      ASSERT_TRUE(d.owner(segment.begin) == rank && d.owner(segment.end - 1) == rank);
      ++seen_local[segment.begin];
      ASSERT_NO_FATAL_FAILURE(check_rows(plan, d, segment, rank));
    }
    const std::vector<GatheredSegment> gathered = plan.gathered_segments(0);
    ASSERT_LE(gathered.size(), 2u);
    // Two segments of equal parity would put this rank into one communicator twice.
    if (gathered.size() == 2) {
      ASSERT_EQ(gathered[0].number + 1, gathered[1].number);
    }
    for (const GatheredSegment& g : gathered) {
      ASSERT_NE(std::find(segments.begin(), segments.end(), g.segment), segments.end());
      ASSERT_EQ(g.first_rank, d.owner(g.segment.begin));
      ASSERT_EQ(g.last_rank, d.owner(g.segment.end - 1));
      ASSERT_LT(g.first_rank, g.last_rank);
      ASSERT_TRUE(g.first_rank <= rank && rank <= g.last_rank);
      ASSERT_EQ(g.number, numbers.at(g.segment.begin));
      ASSERT_TRUE(seen_gathered[g.segment.begin].insert(rank).second);
      for (int member = g.first_rank; member <= g.last_rank; ++member)
        ASSERT_NO_FATAL_FAILURE(check_rows(plan, d, g.segment, member));
      ASSERT_NO_FATAL_FAILURE(check_layout(plan, d, g));
    }
  }
  ASSERT_EQ(covered, d.tokens);
  for (const Segment& segment : segments) {
    const int first = d.owner(segment.begin), last = d.owner(segment.end - 1);
    ASSERT_EQ(seen_local[segment.begin], first == last ? 1 : 0);
    ASSERT_EQ(static_cast<int>(seen_gathered[segment.begin].size()),
              first == last ? 0 : last - first + 1);
  }
}

TEST(SequencePlan, EverySmallCase) {
  int64_t cases = 0;
  for (int64_t tokens = 1; tokens <= 13; ++tokens)
    for (int64_t ranks = 1; ranks <= 6; ++ranks)
      for (int64_t w = 1; w <= tokens + 2; ++w)
        for (int64_t r : {1, 2, 3, 5, 20})
          for (int64_t heads : {1, 3, 4})
            for (HeadOffset mode : {HeadOffset::kInterleaved, HeadOffset::kBlocked}) {
              check_case({tokens, ranks, heads, w, r, (tokens + ranks - 1) / ranks, mode});
              ASSERT_FALSE(testing::Test::HasFatalFailure())
                  << "N " << tokens << " P " << ranks << " w " << w << " r " << r << " H " << heads
                  << (mode == HeadOffset::kBlocked ? " blocked" : " interleaved");
              ++cases;
            }
  EXPECT_GT(cases, 20000);
}

TEST(SequencePlan, LargerCases) {
  for (int64_t w : {7, 100, 250, 333, 1000})
    for (int64_t ranks : {7, 8, 16})
      for (int64_t r : {1, 12, 64}) {
        check_case({999, ranks, 12, w, r, (999 + ranks - 1) / ranks, HeadOffset::kInterleaved});
        ASSERT_FALSE(testing::Test::HasFatalFailure()) << w << " " << ranks << " " << r;
      }
}

TEST(SequencePlan, ClosedFormsEqualTheListsOfRandomSequences) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 3000; ++round) {
    const int64_t tokens = 1 + static_cast<int64_t>(random() % 5000);
    const int ranks = 1 + static_cast<int>(random() % 60);
    const int64_t w = 1 + static_cast<int64_t>(random() % (random() % 4 ? 200 : 6000));
    const int rank = static_cast<int>(random() % ranks);
    const SequencePlan plan(tokens, ranks, rank, 3, {{w, 2}}, HeadOffset::kInterleaved);
    const int64_t length = plan.shard_length();
    const auto straddling = [&](int64_t before) {
      int64_t number = 0;
      for (int64_t begin = 0; begin < before; begin += w)
        number += begin / length != (std::min(tokens, begin + w) - 1) / length;
      return number;
    };
    ASSERT_EQ(plan.straddling_segments(0), straddling(tokens))
        << tokens << " " << ranks << " " << w;
    for (const GatheredSegment& g : plan.gathered_segments(0))
      ASSERT_EQ(g.number, straddling(g.segment.begin)) << tokens << " " << ranks << " " << w;
    std::vector<Segment> listed;
    for (const SegmentClass& c : plan.local_classes(0))
      for (int64_t i = 0; i < c.count; ++i)
        listed.push_back({c.first.begin + i * w, c.first.end + i * w});
    ASSERT_EQ(listed, plan.local_segments(0)) << tokens << " " << ranks << " " << w;
  }
}

TEST(SequencePlan, EmptyRanksOwnNothingAndTakePartInNothing) {
  // L = ceil(5 / 4) = 2: rank 3 begins where the sequence ends.
  const SequencePlan plan(5, 4, 3, 2, {{5, 1}, {2, 1}}, HeadOffset::kInterleaved);
  EXPECT_EQ(plan.local_tokens(), 0);
  EXPECT_EQ(plan.local_begin(), 5);
  for (int branch : {0, 1}) {
    EXPECT_TRUE(plan.local_segments(branch).empty());
    EXPECT_TRUE(plan.gathered_segments(branch).empty());
  }
}

TEST(SequencePlan, HugeSegmentsAndDilationsDoNotOverflow) {
  for (int64_t w : {int64_t{1'000'000'000'000'000'000}, kMax - 1, kMax})
    for (int64_t r : {int64_t{1}, int64_t{1'000'000'000'000'000'000}, kMax})
      for (HeadOffset mode : {HeadOffset::kInterleaved, HeadOffset::kBlocked}) {
        const int64_t tokens = 1000;
        int64_t kept = 0;
        for (int rank = 0; rank < 8; ++rank) {
          const SequencePlan plan(tokens, 8, rank, 4, {{w, r}}, mode);
          ASSERT_TRUE(plan.local_segments(0).empty());
          ASSERT_EQ(plan.straddling_segments(0), 1);
          const auto gathered = plan.gathered_segments(0);
          ASSERT_EQ(gathered.size(), 1u);
          ASSERT_EQ(gathered[0].segment, (Segment{0, tokens}));
          ASSERT_EQ(gathered[0].ranks(), 8);
          for (int64_t h = 0; h < 4; ++h) kept += plan.rows(0, gathered[0].segment, rank, h).count;
        }
        // r above N: every head keeps one token, at place h or floor(h / 1).
        EXPECT_EQ(kept, r == 1 ? 4 * tokens : 4) << w << " " << r;
      }
}

TEST(SequencePlan, LongSequencesDoNotOverflow) {
  const int64_t tokens = (int64_t{1} << 50) + 12345;
  const int ranks = 1000;
  const int64_t w = int64_t{1} << 45, r = int64_t{1} << 30;
  int64_t covered = 0;
  for (int rank : {0, 1, 499, 998, 999}) {
    const SequencePlan plan(tokens, ranks, rank, 2, {{w, r}}, HeadOffset::kInterleaved);
    const int64_t length = plan.shard_length();
    EXPECT_EQ(plan.local_begin(), std::min(tokens, rank * length));
    for (const GatheredSegment& g : plan.gathered_segments(0)) {
      EXPECT_EQ(g.segment.begin % w, 0);
      EXPECT_LE(g.segment.end, tokens);
      int64_t rows = 0;
      for (int member = g.first_rank; member <= g.last_rank; ++member)
        rows += plan.rows(0, g.segment, member, 1).count;
      EXPECT_EQ(rows, (g.segment.end - g.segment.begin - 1 + r - 1) / r);
      ++covered;
    }
  }
  EXPECT_GT(covered, 0);
  for (int rank : {998, 999}) {
    const SequencePlan plan(tokens, ranks, rank, 2, {{w, r}}, HeadOffset::kInterleaved);
    EXPECT_GE(plan.local_tokens(), 0);
  }
}

TEST(SequencePlan, WrongArgumentsAreRefused) {
  const std::vector<Branch> one{{4, 2}};
  const HeadOffset mode = HeadOffset::kInterleaved;
  EXPECT_THROW(SequencePlan(0, 1, 0, 1, one, mode), Error);
  EXPECT_THROW(SequencePlan(4, 0, 0, 1, one, mode), Error);
  EXPECT_THROW(SequencePlan(4, 2, 2, 1, one, mode), Error);
  EXPECT_THROW(SequencePlan(4, 2, -1, 1, one, mode), Error);
  EXPECT_THROW(SequencePlan(4, 1, 0, 0, one, mode), Error);
  EXPECT_THROW(SequencePlan(4, 1, 0, 1, {}, mode), Error);
  EXPECT_THROW(SequencePlan(4, 1, 0, 1, {{0, 1}}, mode), Error);
  EXPECT_THROW(SequencePlan(4, 1, 0, 1, {{4, 0}}, mode), Error);
}

}  // namespace
}  // namespace longnet::test
