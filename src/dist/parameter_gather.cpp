// Shards of the flat buffers: ownership, and the gather of updated parameters. See mesh.h.
//
// Piece k of a rank is the k-th bucket of its own range. All ranks start piece k of rank 0, of rank
// 1, ... and then piece k + 1: in this one order the senders alternate, so no link carries one
// rank's whole range while the others are idle. A piece is an all-gather with one chunk.
#include <algorithm>

#include "dist/mesh.h"

namespace longnet {

std::vector<int64_t> shard_limits(int64_t n, int ranks) {
  constexpr int64_t kUnit = kAlignment / static_cast<int64_t>(sizeof(float));
  LN_CHECK(n >= 0 && ranks >= 1, "shards of {} elements over {} ranks", n, ranks);
  std::vector<int64_t> begin;
  for (int m = 0; m <= ranks; ++m)
    begin.push_back(std::min(n, kUnit * block_begin((n + kUnit - 1) / kUnit, ranks, m)));
  return begin;
}

struct ParameterGather::Impl {
  Impl(Communicator& world, const TensorView& parameters, std::span<const int64_t> shards,
       int64_t bucket_bytes)
      : world_(same_ranks_for(world, parameters, "parameters")),
        values_(static_cast<char*>(parameters.data)),
        width_(dtype_size(parameters.dtype)),
        piece_(std::max<int64_t>(64, bucket_bytes / width_ / 64 * 64)),
        shards_(shards.begin(), shards.end()),
        chunks_(shards.size()) {
    LN_CHECK(parameters.contiguous(), "parameters {} must be contiguous", parameters.describe());
    LN_CHECK(static_cast<int>(shards_.size()) == world.size() + 1 && shards_.front() == 0 &&
                 shards_.back() == parameters.elements(),
             "{} shard limits for {} ranks and {} parameters", shards_.size(), world.size(),
             parameters.elements());
    for (size_t m = 0; m + 1 < shards_.size(); ++m)
      pieces_ = std::max(pieces_, (shards_[m + 1] - shards_[m] + piece_ - 1) / piece_);
  }

  /// Where piece k of rank m begins; piece k + 1 begins where it ends.
  int64_t piece_begin(size_t m, int64_t k) const {
    return std::min(shards_[m] + k * piece_, shards_[m + 1]);
  }

  void start(int64_t k) {
    if (pieces_ == 1) {  // all ranks' ranges in one operation
      for (size_t m = 0; m < shards_.size(); ++m) chunks_[m] = shards_[m] * width_;
      running_.push_back(world_->start_all_gather(values_, chunks_));
      return;
    }
    for (size_t owner = 0; owner + 1 < shards_.size(); ++owner) {
      const int64_t begin = piece_begin(owner, k), end = piece_begin(owner, k + 1);
      if (begin == end) continue;
      for (size_t m = 0; m < shards_.size(); ++m) chunks_[m] = (m <= owner ? begin : end) * width_;
      running_.push_back(world_->start_all_gather(values_, chunks_));
    }
  }

  void ready(int64_t end) {
    if (!world_) return;
    const auto rank = static_cast<size_t>(world_->rank());
    while (next_ < pieces_ && piece_begin(rank, next_ + 1) <= end) start(next_++);
  }

  void wait() {
    if (!world_) return;
    for (const Communicator::Request request : running_) world_->wait(request);
    running_.clear();
    next_ = 0;
  }

  std::unique_ptr<Communicator> world_;  // null: one rank
  char* values_;
  int64_t width_;                // bytes of an element
  int64_t piece_;                // elements
  std::vector<int64_t> shards_;  // [ranks + 1]
  std::vector<int64_t> chunks_;  // scratch, bytes
  int64_t pieces_ = 0;           // of the largest range
  int64_t next_ = 0;             // piece to start
  std::vector<Communicator::Request> running_;
};

ParameterGather::ParameterGather(Communicator& world, const TensorView& parameters,
                                 std::span<const int64_t> shards, int64_t bucket_bytes)
    : impl_(std::make_unique<Impl>(world, parameters, shards, bucket_bytes)) {}
ParameterGather::~ParameterGather() = default;

void ParameterGather::ready(int64_t end) { impl_->ready(end); }
void ParameterGather::wait() { impl_->wait(); }
int64_t ParameterGather::piece_elements() const { return impl_->piece_; }
int64_t ParameterGather::bytes_sent() const {
  return impl_->world_ ? impl_->world_->bytes_sent() : 0;
}

}  // namespace longnet
