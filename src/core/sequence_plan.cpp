// See sequence_plan.h.
#include "core/sequence_plan.h"

#include <algorithm>
#include <numeric>

#include "core/byte_count.h"
#include "core/tensor.h"

namespace longnet {
namespace {

/// For a >= 0, b >= 1, of any size: no sum that could overflow.
int64_t ceil_div(int64_t a, int64_t b) { return a == 0 ? 0 : (a - 1) / b + 1; }

}  // namespace

int64_t head_offset(int64_t head, int64_t heads, int64_t dilation, HeadOffset mode) {
  if (mode == HeadOffset::kInterleaved) return head % dilation;
  return head / ceil_div(heads, dilation);
}

RowRange kept_rows(const Segment& segment, int64_t range_begin, int64_t range_end, int64_t offset,
                   int64_t dilation) {
  const int64_t begin = std::max(range_begin, segment.begin);
  const int64_t end = std::min(range_end, segment.end);
  if (begin >= end) return {};
  // Row i is token base + i r: the first row at or after a token t is ceil((t - base) / r), >= 0.
  const int64_t base = segment.begin + offset;
  const auto first_at = [&](int64_t token) {
    return token <= base ? int64_t{0} : ceil_div(token - base, dilation);
  };
  const int64_t first = first_at(begin);
  return {first, std::max<int64_t>(0, first_at(end) - first)};
}

SequencePlan::SequencePlan(int64_t tokens, int ranks, int rank, int64_t heads,
                           std::vector<Branch> branches, HeadOffset mode)
    : tokens_(tokens),
      ranks_(ranks),
      rank_(rank),
      heads_(heads),
      branches_(std::move(branches)),
      mode_(mode),
      shard_length_(ranks > 0 ? ceil_div(tokens, ranks) : 0) {
  LN_CHECK(tokens >= 1, "a sequence of {} tokens", tokens);
  LN_CHECK(ranks >= 1 && rank >= 0 && rank < ranks, "rank {} of {}", rank, ranks);
  LN_CHECK(heads >= 1, "{} heads", heads);
  LN_CHECK(!branches_.empty(), "no branches");
  for (const Branch& branch : branches_)
    LN_CHECK(branch.segment_length >= 1 && branch.dilation >= 1,
             "branch with segment length {} and dilation {}; both must be at least 1",
             branch.segment_length, branch.dilation);
}

int64_t SequencePlan::begin_of(int rank) const { return std::min(tokens_, rank * shard_length_); }
int64_t SequencePlan::end_of(int rank) const {
  return std::min(tokens_, (rank + 1) * shard_length_);
}

std::vector<int64_t> SequencePlan::head_offsets(int branch) const {
  std::vector<int64_t> offsets(heads_);
  for (int64_t h = 0; h < heads_; ++h)
    offsets[h] = head_offset(h, heads_, branches_[branch].dilation, mode_);
  return offsets;
}

std::vector<Segment> SequencePlan::local_segments(int branch) const {
  const int64_t begin = begin_of(rank_), end = end_of(rank_);
  const int64_t w = branches_[branch].segment_length;
  std::vector<Segment> segments;
  if (begin == end) return segments;
  for (int64_t index = begin / w; index <= (end - 1) / w; ++index) {
    // w may be far above N; index * w <= end keeps this from overflowing.
    const Segment segment{index * w, std::min(tokens_ - index * w, w) + index * w};
    if (segment.begin >= begin && segment.end <= end) segments.push_back(segment);
  }
  return segments;
}

std::vector<SegmentClass> SequencePlan::local_classes(int branch) const {
  const int64_t begin = begin_of(rank_), end = end_of(rank_);
  const int64_t w = branches_[branch].segment_length;
  std::vector<SegmentClass> classes;
  if (begin == end) return classes;
  // The last segment of the sequence, short or not, ends where the sequence does.
  const int64_t first = ceil_div(begin, w);
  const int64_t last = end == tokens_ ? (tokens_ - 1) / w : end / w - 1;
  if (first > last) return classes;
  const bool short_one = end == tokens_ && tokens_ - last * w < w;
  const int64_t full = last - first + (short_one ? 0 : 1);
  if (full > 0) classes.push_back({{first * w, first * w + w}, full});
  if (short_one) classes.push_back({{last * w, tokens_}, 1});
  return classes;
}

int64_t SequencePlan::local_segment_count(int branch) const {
  int64_t count = 0;
  for (const SegmentClass& c : local_classes(branch)) count += c.count;
  return count;
}

int64_t SequencePlan::straddling_before(int branch, int64_t end) const {
  // A segment straddles exactly when it holds a rank boundary q L, 0 < q L < N, in its interior.
  const int64_t w = branches_[branch].segment_length, length = shard_length_;
  if (end <= 1) return 0;
  const int64_t boundaries = (end - 1) / length;  // below `end`
  // No two boundaries lie in one segment; those that begin a segment are the multiples of both.
  if (w <= length) return boundaries - boundaries / (w / std::gcd(w, length));
  // Every full segment has L tokens or more after its first one: one of them is a boundary. The cut
  // one has its own if the last boundary lies behind its first token.
  const int64_t full = end / w;
  return full + (boundaries * length > full * w ? 1 : 0);
}

int64_t SequencePlan::straddling_segments(int branch) const {
  return straddling_before(branch, tokens_);
}

GatheredSegment SequencePlan::describe(int branch, const Segment& segment) const {
  // Boundaries up to segment.begin lie in earlier segments, or on this one's first token.
  return {segment, straddling_before(branch, segment.begin),
          static_cast<int>(segment.begin / shard_length_),
          static_cast<int>((segment.end - 1) / shard_length_)};
}

std::vector<GatheredSegment> SequencePlan::gathered_segments(int branch) const {
  const int64_t begin = begin_of(rank_), end = end_of(rank_);
  const int64_t w = branches_[branch].segment_length;
  std::vector<GatheredSegment> gathered;
  if (begin == end) return gathered;
  const int64_t first = begin / w, last = (end - 1) / w;
  for (int64_t index : {first, last}) {
    if (index == last && !gathered.empty() && first == last) continue;
    const Segment segment{index * w, std::min(tokens_ - index * w, w) + index * w};
    if (segment.begin >= begin && segment.end <= end) continue;
    if (!gathered.empty() && gathered.back().segment == segment) continue;
    gathered.push_back(describe(branch, segment));
  }
  return gathered;
}

RowRange SequencePlan::rows(int branch, const Segment& segment, int rank, int64_t head) const {
  const int64_t dilation = branches_[branch].dilation;
  return kept_rows(segment, begin_of(rank), end_of(rank),
                   head_offset(head, heads_, dilation, mode_), dilation);
}

GatherLayout::GatherLayout(const SequencePlan& plan, int branch, const GatheredSegment& gathered,
                           int64_t batch_in, int64_t head_dim_in)
    : batch(batch_in),
      head_dim(head_dim_in),
      mine(plan.rank() - gathered.first_rank),
      gathered_(gathered),
      tokens_(plan.tokens()),
      shard_length_(plan.shard_length()),
      dilation_(plan.branches()[branch].dilation),
      head_offsets_(plan.head_offsets(branch)) {
  constexpr const char* kWhat = "gathered keys and values";
  int64_t elements = checked_product(chunk_rows(0, ranks()), 2 * head_dim, kWhat);
  elements = checked_product(elements, batch, kWhat);
  checked_product(elements, dtype_size(DType::kF32), kWhat);
  elements_ = elements;
}

int64_t GatherLayout::begin_of(int member) const {
  return std::min(tokens_, (gathered_.first_rank + member) * shard_length_);
}

RowRange GatherLayout::rows(int first, int end, int64_t head) const {
  return kept_rows(gathered_.segment, begin_of(first), begin_of(end), head_offsets_[head],
                   dilation_);
}

std::vector<int64_t> GatherLayout::row_slot(int first, int end) const {
  std::vector<int64_t> slots;
  int64_t total = 0;
  for (size_t h = 0; h < head_offsets_.size(); ++h) {
    slots.push_back(total);
    total += rows(first, end, static_cast<int64_t>(h)).count;
  }
  return slots;
}

int64_t GatherLayout::chunk_rows(int first, int end) const {
  int64_t total = 0;
  for (size_t h = 0; h < head_offsets_.size(); ++h)
    total += rows(first, end, static_cast<int64_t>(h)).count;
  return total;
}

int64_t GatherLayout::chunk_begin(int member) const {
  return 2 * batch * chunk_rows(0, member) * head_dim;
}

}  // namespace longnet
