// SequenceExchange: every gathered element checked against the code of its place, sums of integers
// exactly, bytes against the formula of docs/sequence_parallel.md.
#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>
#include <random>

#include "dist/mesh.h"

namespace longnet::test {
namespace {

struct Case {
  int64_t tokens, heads, batch, head_dim;
  std::vector<Branch> branches;
  HeadOffset mode;
};

Case random_case(std::mt19937_64& random, int ranks) {
  const auto pick = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % (high - low + 1));
  };
  Case c;
  c.tokens = pick(0, 4) == 0 ? pick(1, ranks) : pick(1, 200);  // often fewer tokens than ranks
  c.heads = pick(1, 6);
  c.batch = pick(1, 3);
  c.head_dim = pick(1, 9);
  c.mode = pick(0, 1) == 0 ? HeadOffset::kInterleaved : HeadOffset::kBlocked;
  for (int64_t k = pick(1, 4); k > 0; --k)
    c.branches.push_back({pick(1, c.tokens + 20), pick(1, pick(0, 1) == 0 ? 3 : 60)});
  return c;
}

/// Says which element it is: (branch, part, sequence, head, token, element) and a salt, as an
/// integer that float32 holds and that eight ranks' sum still holds. Mixed, so that neighbours
/// differ in every field.
float code(int64_t branch, int64_t part, int64_t b, int64_t head, int64_t token, int64_t d,
           int64_t salt) {
  uint64_t x = salt;
  for (int64_t field : {branch, part, b, head, token, d})
    x = (x ^ static_cast<uint64_t>(field)) * 0x9E3779B97F4A7C15u + (x >> 29);
  return static_cast<float>(static_cast<int64_t>(x >> 44)) - 524288.0f;  // 20 bits
}

/// Calls body(value, part, b, head, token, d) for every element of a member's chunk.
template <typename Body>
void for_each_element(const SequencePlan& plan, int branch, const GatheredSegment& segment,
                      const GatherLayout& layout, int member, float* buffer, const Body& body) {
  const std::vector<int64_t> offsets = plan.head_offsets(branch);
  const int64_t r = plan.branches()[branch].dilation, rows = layout.chunk_rows(member);
  for (int64_t part = 0; part < 2; ++part)
    for (int64_t b = 0; b < layout.batch; ++b)
      for (int64_t h = 0; h < plan.heads(); ++h)
        for (int64_t i = 0; i < layout.rows(member, h).count; ++i) {
          const int64_t token =
              segment.segment.begin + offsets[h] + (layout.rows(member, h).first + i) * r;
          float* row =
              buffer + layout.chunk_begin(member) +
              ((part * layout.batch + b) * rows + layout.row_slot(member)[h] + i) * layout.head_dim;
          for (int64_t d = 0; d < layout.head_dim; ++d) body(row[d], part, b, h, token, d);
        }
}

struct Piece {
  int branch, which;
  GatheredSegment segment;
  GatherLayout layout;
  std::vector<float> values;
  TensorView view() {
    return TensorView(values.data(), DType::kF32, {static_cast<int64_t>(layout.elements())});
  }
};

/// All gathered segments of a rank in the order that all ranks agree on.
std::vector<Piece> pieces_of(const SequencePlan& plan, int64_t batch, int64_t head_dim) {
  std::vector<Piece> pieces;
  for (int branch = 0; branch < static_cast<int>(plan.branches().size()); ++branch) {
    const auto segments = plan.gathered_segments(branch);
    for (int which = 0; which < static_cast<int>(segments.size()); ++which) {
      GatherLayout layout(plan, branch, segments[which], batch, head_dim);
      std::vector<float> values(layout.elements() + 1, 12345.0f);  // an empty one has an address
      pieces.push_back({branch, which, segments[which], std::move(layout), std::move(values)});
    }
  }
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
    return std::pair(a.branch, a.segment.number % 2) < std::pair(b.branch, b.segment.number % 2);
  });
  return pieces;
}

TEST(SequenceExchange, GathersEveryElementAndReturnsEverySum) {
  const auto world = make_mpi_communicator();
  std::mt19937_64 random(11);  // the same on every rank
  const int cases = 60;
  for (int n = 0; n < cases; ++n) {
    const Case c = random_case(random, world->size());
    SCOPED_TRACE(
        fmt::format("case {}: N {} H {} B {} D {}", n, c.tokens, c.heads, c.batch, c.head_dim));
    const SequencePlan plan(c.tokens, world->size(), world->rank(), c.heads, c.branches, c.mode);
    SequenceExchange exchange(*world, plan, c.batch, c.head_dim);
    std::vector<Piece> pieces = pieces_of(plan, c.batch, c.head_dim);
    for (int64_t layer = 0; layer < 2; ++layer) {
      int64_t wrong = 0, elements = 0;
      for (Piece& p : pieces) {
        std::fill(p.values.begin(), p.values.end(), 12345.0f);
        for_each_element(plan, p.branch, p.segment, p.layout, p.layout.mine, p.values.data(),
                         [&](float& v, int64_t part, int64_t b, int64_t h, int64_t token,
                             int64_t d) { v = code(p.branch, part, b, h, token, d, layer); });
        exchange.start_gather(p.branch, p.which, p.view());
        exchange.progress();
      }
      for (Piece& p : pieces) {
        exchange.wait_gather(p.branch, p.which);
        for (int member = 0; member < p.segment.ranks(); ++member)
          for_each_element(
              plan, p.branch, p.segment, p.layout, member, p.values.data(),
              [&](float& v, int64_t part, int64_t b, int64_t h, int64_t token, int64_t d) {
                ++elements;
                wrong += v != code(p.branch, part, b, h, token, d, layer);
              });
        elements -= p.layout.elements();
        wrong += p.values.back() != 12345.0f;
      }
      EXPECT_EQ(wrong, 0);
      EXPECT_EQ(elements, 0) << "the layout has places that no row fills";

      // Backward: rank k's share of an element's gradient is its code salted with k.
      for (Piece& p : pieces) {
        for (int member = 0; member < p.segment.ranks(); ++member)
          for_each_element(
              plan, p.branch, p.segment, p.layout, member, p.values.data(),
              [&](float& v, int64_t part, int64_t b, int64_t h, int64_t token, int64_t d) {
                v = code(p.branch, part, b, h, token, d, 100 + world->rank());
              });
        exchange.start_reduce(p.branch, p.which, p.view());
      }
      for (Piece& p : pieces) {
        exchange.wait_reduce(p.branch, p.which);
        for_each_element(
            plan, p.branch, p.segment, p.layout, p.layout.mine, p.values.data(),
            [&](float& v, int64_t part, int64_t b, int64_t h, int64_t token, int64_t d) {
              float sum = 0;
              for (int rank = p.segment.first_rank; rank <= p.segment.last_rank; ++rank)
                sum += code(p.branch, part, b, h, token, d, 100 + rank);
              wrong += v != sum;
            });
      }
      EXPECT_EQ(wrong, 0);
    }
  }
}

TEST(SequenceExchange, Bf16GathersMoveHalfTheBytes) {
  const auto world = make_mpi_communicator();
  const int size = world->size();
  const int64_t tokens = 8 * size;
  const SequencePlan plan(tokens, size, world->rank(), 2, {{tokens, 2}}, HeadOffset::kInterleaved);
  SequenceExchange exchange(*world, plan, 1, 4);
  if (size == 1) {
    EXPECT_TRUE(plan.gathered_segments(0).empty());
    return;
  }
  const GatherLayout layout(plan, 0, plan.gathered_segments(0)[0], 1, 4);
  std::vector<uint16_t> buffer(layout.elements(), 0);
  for (int64_t i = layout.chunk_begin(layout.mine); i < layout.chunk_begin(layout.mine + 1); ++i)
    buffer[i] = static_cast<uint16_t>(i * 3 + 1);
  exchange.start_gather(0, 0, TensorView(buffer.data(), DType::kBF16, {layout.elements()}));
  exchange.wait_gather(0, 0);
  int64_t wrong = 0;
  for (int64_t i = 0; i < layout.elements(); ++i)
    wrong += buffer[i] != static_cast<uint16_t>(i * 3 + 1);
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(exchange.traffic().forward_bytes, (size - 1) * layout.chunk_elements(layout.mine) * 2);
}

TEST(SequenceExchange, WrongUseIsRefused) {
  const auto world = make_mpi_communicator();
  const int size = world->size();
  const SequencePlan plan(4 * size, size, world->rank(), 1, {{4 * size, 1}, {4, 1}},
                          HeadOffset::kInterleaved);
  SequenceExchange exchange(*world, plan, 1, 2);
  std::vector<float> values(16 * size + 2);
  const TensorView too_long(values.data(), DType::kF32, {16 * size + 2});
  EXPECT_THROW(exchange.start_gather(0, 0, too_long), Error);
  EXPECT_THROW(exchange.start_gather(1, 0, too_long), Error);  // nothing straddles
  EXPECT_THROW(exchange.start_gather(2, 0, too_long), Error);
  EXPECT_THROW(exchange.wait_gather(0, 0), Error);
  EXPECT_THROW(exchange.wait_reduce(0, 0), Error);
  const SequencePlan other(4, size + 1, 0, 1, {{4, 1}}, HeadOffset::kInterleaved);
  EXPECT_THROW(SequenceExchange(*world, other, 1, 2), Error);
}

/// Sends everything that a forward and backward of one layer sends.
Traffic run_layer(Communicator& communicator, const Case& c) {
  const SequencePlan plan(c.tokens, communicator.size(), communicator.rank(), c.heads, c.branches,
                          c.mode);
  SequenceExchange exchange(communicator, plan, c.batch, c.head_dim);
  const bool counting = communicator.transport() == "counting";
  std::vector<Piece> pieces;
  if (!counting) {
    pieces = pieces_of(plan, c.batch, c.head_dim);
    for (Piece& p : pieces) {
      std::fill(p.values.begin(), p.values.end(), 1.0f);
      exchange.start_gather(p.branch, p.which, p.view());
    }
    for (Piece& p : pieces) exchange.wait_gather(p.branch, p.which);
    for (Piece& p : pieces) exchange.start_reduce(p.branch, p.which, p.view());
    for (Piece& p : pieces) exchange.wait_reduce(p.branch, p.which);
    return exchange.traffic();
  }
  // An address of no memory: nothing may be read or written.
  auto* nowhere = reinterpret_cast<void*>(uintptr_t{256});
  for (int branch = 0; branch < static_cast<int>(c.branches.size()); ++branch) {
    const auto segments = plan.gathered_segments(branch);
    for (int which = 0; which < static_cast<int>(segments.size()); ++which) {
      const GatherLayout layout(plan, branch, segments[which], c.batch, c.head_dim);
      const TensorView view(nowhere, DType::kF32, {layout.elements()});
      exchange.start_gather(branch, which, view);
      exchange.progress();
      exchange.wait_gather(branch, which);
      exchange.start_reduce(branch, which, view);
      exchange.wait_reduce(branch, which);
    }
  }
  return exchange.traffic();
}

/// The definition's count: tokens of the sequence that all heads keep, by testing every token.
struct Expected {
  int64_t sent = 0, needed = 0, received = 0, backward_sent = 0;  // bytes
};
Expected expected_bytes(const Case& c, int ranks, int rank) {
  Expected expected;
  const int64_t length = (c.tokens + ranks - 1) / ranks;
  const auto owner = [&](int64_t token) { return static_cast<int>(token / length); };
  for (const Branch& branch : c.branches)
    for (int64_t begin = 0; begin < c.tokens; begin += branch.segment_length) {
      const int64_t end = std::min(c.tokens, begin + branch.segment_length);
      const int first = owner(begin), last = owner(end - 1);
      if (first == last || rank < first || rank > last) continue;
      int64_t own = 0, all = 0;  // (head, token) pairs
      for (int64_t h = 0; h < c.heads; ++h)
        for (int64_t t = begin; t < end; ++t) {
          if ((t - begin) % branch.dilation != head_offset(h, c.heads, branch.dilation, c.mode))
            continue;
          ++all;
          own += owner(t) == rank;
        }
      const int64_t row_bytes = 2 * c.batch * c.head_dim * 4;  // a key and a value
      expected.sent += (last - first) * own * row_bytes;
      expected.needed += (last - rank) * own * row_bytes;
      expected.received += (all - own) * row_bytes;
      expected.backward_sent += (all - own) * row_bytes;
    }
  return expected;
}

TEST(SequenceExchange, BytesAreTheFormula) {
  // A rank receives 2 B D (rows of the segment - own rows) elements forward and sends as many
  // backward; forward it sends (ranks - 1) x its own rows. Over the group both are the same.
  const auto world = make_mpi_communicator();
  std::mt19937_64 random(12);
  for (int n = 0; n < 60; ++n) {
    const Case c = random_case(random, world->size());
    const Traffic traffic = run_layer(*world, c);
    const Expected expected = expected_bytes(c, world->size(), world->rank());
    EXPECT_EQ(traffic.forward_bytes, expected.sent) << n;
    EXPECT_EQ(traffic.forward_needed_bytes, expected.needed) << n;
    EXPECT_EQ(traffic.backward_bytes, expected.backward_sent) << n;
    std::vector<int64_t> totals{traffic.forward_bytes, expected.received, traffic.backward_bytes};
    world->all_reduce_sum(totals);
    EXPECT_EQ(totals[0], totals[1]) << n;
    EXPECT_EQ(totals[0], totals[2]) << n;
    // The plan of this rank, without a job, counts the same.
    const auto counting = make_counting_communicator(world->size(), world->rank());
    const Traffic planned = run_layer(*counting, c);
    EXPECT_EQ(planned.forward_bytes, traffic.forward_bytes) << n;
    EXPECT_EQ(planned.forward_needed_bytes, traffic.forward_needed_bytes) << n;
    EXPECT_EQ(planned.backward_bytes, traffic.backward_bytes) << n;
  }
}

TEST(SequenceExchange, StagingIsOneRowSetPerOtherRank) {
  const auto counting = make_counting_communicator(4, 1);
  const SequencePlan plan(64, 4, 1, 2, {{64, 1}}, HeadOffset::kInterleaved);
  const SequenceExchange exchange(*counting, plan, 3, 32);
  EXPECT_EQ(exchange.staging_bytes(), 3 * (2 * 3 * (2 * 16) * 32) * 4);
}

TEST(Traffic, UnchangedWhenTokensAndRanksDouble) {
  // Fixed L, w, r: ranks inside the sequence send the same, to the one row by which ranks differ.
  const int64_t length = 1000, heads = 6, batch = 2, head_dim = 8;
  for (const Branch branch :
       {Branch{4000, 4}, Branch{16000, 6}, Branch{3000, 7}, Branch{1500, 1}}) {
    int64_t forward = -1, backward = -1;
    for (int ranks = 32; ranks <= 512; ranks *= 2) {
      const Case c{length * ranks, heads, batch, head_dim, {branch}, HeadOffset::kInterleaved};
      int64_t most_forward = 0, most_backward = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const auto counting = make_counting_communicator(ranks, rank);
        const Traffic traffic = run_layer(*counting, c);
        most_forward = std::max(most_forward, traffic.forward_bytes);
        most_backward = std::max(most_backward, traffic.backward_bytes);
      }
      const int64_t group = branch.segment_length / length + 2;
      const int64_t one_row =
          2 * batch * heads * head_dim * 4 * group;  // one row to each other rank
      if (forward >= 0) {
        EXPECT_NEAR(most_forward, forward, one_row) << branch.segment_length << " " << ranks;
        EXPECT_NEAR(most_backward, backward, one_row) << branch.segment_length << " " << ranks;
      }
      // 2 B H D elements for each row of its segments, of which there are one or two, that is
      // another rank's.
      const int64_t row = 2 * batch * heads * head_dim * 4, w = branch.segment_length;
      EXPECT_GE(most_backward, row * (w - length) / branch.dilation - one_row);
      EXPECT_LE(most_backward, row * (2 * w - length) / branch.dilation + one_row);
      forward = most_forward;
      backward = most_backward;
    }
  }
}

TEST(Traffic, BoundedWhenSegmentsGrowWithTheSequence) {
  // w = N at fixed w / r = 2048: below 2 B H D w / r elements for every N, the paper's constant.
  const int64_t heads = 4, batch = 1, head_dim = 8, kept = 2048, length = 4096;
  const int64_t bound = 2 * batch * heads * head_dim * kept * 4;
  for (int ranks = 2; ranks <= 512; ranks *= 2) {
    const int64_t tokens = length * ranks;
    const Case c{
        tokens, heads, batch, head_dim, {{tokens, tokens / kept}}, HeadOffset::kInterleaved};
    for (int rank : {0, ranks / 2, ranks - 1}) {
      const auto counting = make_counting_communicator(ranks, rank);
      const Traffic traffic = run_layer(*counting, c);
      EXPECT_LT(traffic.forward_bytes, bound) << ranks;
      EXPECT_LT(traffic.backward_bytes, bound) << ranks;
      EXPECT_GE(traffic.forward_bytes, bound / 2) << ranks;  // (P - 1) / P of it
    }
  }
}

TEST(Traffic, HundredsOfRanksPlanQuickly) {
  const auto counting = make_counting_communicator(512, 300);
  const int64_t tokens = int64_t{1} << 30;  // a billion
  const Case c{tokens,
               12,
               1,
               64,
               {{2048, 1}, {tokens / 512, 1024}, {tokens, tokens / 2048}},
               HeadOffset::kInterleaved};
  const std::clock_t start = std::clock();  // of this process: other load does not count
  const Traffic traffic = run_layer(*counting, c);
  EXPECT_LT(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC, 2.0);
  EXPECT_LT(traffic.forward_bytes, 2 * 12 * 64 * 2048 * 4);
  EXPECT_GT(traffic.forward_bytes, 0);
}

}  // namespace
}  // namespace longnet::test
