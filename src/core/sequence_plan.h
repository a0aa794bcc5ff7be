// SequencePlan: which tokens, segments and rows each rank holds. Integers only, no memory, no MPI.
//
// Rank p of P owns tokens [p L, min((p + 1) L, N)), L = ceil(N / P); the last ranks may hold fewer
// or none. A branch (w, r) cuts the sequence into segments of w tokens; head h keeps the tokens
// whose place in the segment is head_offset(h) modulo r. Kept tokens of one segment and head are
// its *rows*, numbered from 0 in the segment: row i is token begin + head_offset(h) + i r. A
// segment inside one rank is local. One that touches several ranks is *gathered*: its ranks
// exchange their rows. Only the first and the last segment that touch a rank can straddle, so a
// rank takes part in at most two gathered segments per branch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"

namespace longnet {

/// interleaved: h mod r (the paper). blocked: floor(h / ceil(H / r)) (torchscale checkpoints).
enum class HeadOffset { kInterleaved, kBlocked };

/// One (w, r) pair, both in tokens, both >= 1.
struct Branch {
  int64_t segment_length = 0;
  int64_t dilation = 0;
  bool operator==(const Branch&) const = default;
};

/// Place of head's first kept token in a dilation period, in [0, dilation).
int64_t head_offset(int64_t head, int64_t heads, int64_t dilation, HeadOffset mode);

/// Tokens [begin, end) of the sequence; the last segment may be short.
struct Segment {
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const Segment&) const = default;
};

/// `count` consecutive segments of equal length, beginning with `first`.
struct SegmentClass {
  Segment first;
  int64_t count = 0;
  bool operator==(const SegmentClass&) const = default;
};

/// Rows [first, first + count) of one segment and head.
struct RowRange {
  int64_t first = 0;
  int64_t count = 0;
  bool operator==(const RowRange&) const = default;
};

/// The rows of a segment whose tokens lie in [range_begin, range_end). offset: head_offset().
RowRange kept_rows(const Segment& segment, int64_t range_begin, int64_t range_end, int64_t offset,
                   int64_t dilation);

/// A segment of one branch over several ranks, as seen from one of them.
struct GatheredSegment {
  Segment segment;
  int64_t number =
      0;  // among the branch's straddling segments; even ones share no rank, nor do odd
  int first_rank = 0;  // ranks first_rank .. last_rank touch it, all with at least one token
  int last_rank = 0;
  int ranks() const { return last_rank - first_rank + 1; }
};

class SequencePlan {
 public:
  /// tokens: N >= 1. ranks: P >= 1. 0 <= rank < P. branches: at least one, w and r >= 1.
  SequencePlan(int64_t tokens, int ranks, int rank, int64_t heads, std::vector<Branch> branches,
               HeadOffset mode);

  int64_t tokens() const { return tokens_; }
  int ranks() const { return ranks_; }
  int rank() const { return rank_; }
  int64_t heads() const { return heads_; }
  HeadOffset mode() const { return mode_; }
  const std::vector<Branch>& branches() const { return branches_; }

  int64_t shard_length() const { return shard_length_; }  // L = ceil(N / P)
  int64_t begin_of(int rank) const;                       // first token of a rank, <= N
  int64_t end_of(int rank) const;
  int64_t local_begin() const { return begin_of(rank_); }
  int64_t local_tokens() const { return end_of(rank_) - begin_of(rank_); }

  /// This branch's offset of every head, [H].
  std::vector<int64_t> head_offsets(int branch) const;
  /// Segments wholly inside this rank, in order.
  std::vector<Segment> local_segments(int branch) const;
  /// local_segments() without the list: the full segments, and the last segment of the sequence if
  /// it is short. None, one or two classes, in order.
  std::vector<SegmentClass> local_classes(int branch) const;
  /// Number of local_segments().
  int64_t local_segment_count(int branch) const;
  /// Segments this rank shares with others, in order: none, one or two.
  std::vector<GatheredSegment> gathered_segments(int branch) const;
  /// How many segments of this branch straddle ranks, anywhere in the sequence.
  int64_t straddling_segments(int branch) const;
  /// Rows of a segment that a rank holds for one head.
  RowRange rows(int branch, const Segment& segment, int rank, int64_t head) const;

 private:
  GatheredSegment describe(int branch, const Segment& segment) const;
  int64_t straddling_before(int branch, int64_t end) const;

  int64_t tokens_;
  int ranks_;
  int rank_;
  int64_t heads_;
  std::vector<Branch> branches_;
  HeadOffset mode_;
  int64_t shard_length_;
};

/// How the rows of a gathered segment lie in one buffer: the ranks' chunks in rank order, each
/// chunk [2 (keys, values), B, R, D] with R the rank's rows of all heads, head after head. It stores
/// no list of ranks; each call computes its answer in O(H), so the cost does not depend on the
/// number of ranks. member: place in the group, 0 .. ranks() - 1.
class GatherLayout {
 public:
  GatherLayout(const SequencePlan& plan, int branch, const GatheredSegment& gathered, int64_t batch,
               int64_t head_dim);

  int64_t batch = 0;
  int64_t head_dim = 0;
  int mine = 0;  // this rank's place in the group

  int ranks() const { return gathered_.ranks(); }
  RowRange rows(int member, int64_t head) const { return rows(member, member + 1, head); }
  std::vector<int64_t> row_slot(int member) const {  // [H] first row of a head inside the chunk
    return row_slot(member, member + 1);
  }
  int64_t chunk_rows(int member) const { return chunk_rows(member, member + 1); }  // R
  int64_t chunk_begin(int member) const;  // elements from the buffer's start; 0 <= member <= ranks
  int64_t chunk_elements(int member) const { return 2 * batch * chunk_rows(member) * head_dim; }
  int64_t elements() const { return elements_; }

  /// The same for members first .. end - 1 together, as if they were one rank.
  RowRange rows(int first, int end, int64_t head) const;
  std::vector<int64_t> row_slot(int first, int end) const;
  int64_t chunk_rows(int first, int end) const;

 private:
  int64_t begin_of(int member) const;  // its first token

  GatheredSegment gathered_;
  int64_t tokens_;
  int64_t shard_length_;
  int64_t dilation_;
  std::vector<int64_t> head_offsets_;  // [H]
  int64_t elements_ = 0;
};

}  // namespace longnet
