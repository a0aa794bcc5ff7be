// Sums of the flat gradient buffer over all ranks. See mesh.h.
//
// At most kOutstanding buckets are under way: their staging, not the gradients' size, bounds the
// memory. Later buckets wait in a queue, which is the same on all ranks, in order. With shards a
// bucket is a reduce-scatter whose chunks are what each rank owns of it, most of them empty.
#include <algorithm>
#include <deque>
#include <exception>

#include "dist/mesh.h"

namespace longnet {

struct GradientSum::Impl {
  // Enough that one bucket's gather phase overlaps the next one's scatter phase.
  static constexpr size_t kOutstanding = 4;
  struct Bucket {
    int64_t begin = 0;
    int64_t end = 0;
  };

  // Pieces of a sharded sum are not made smaller than this: messages cost time by number, too.
  static constexpr int64_t kSmallestPiece = 16384;  // elements

  Impl(Communicator& world, const TensorView& gradients, int64_t bucket_bytes,
       std::span<const int64_t> shards)
      : world_(world.size() == 1 ? nullptr
                                 : world.split_known(world.size(), world.rank(), 0, world.rank())),
        values_(static_cast<float*>(gradients.data)),
        elements_(gradients.elements()),
        bucket_elements_(std::max<int64_t>(1, bucket_bytes / static_cast<int64_t>(sizeof(float)))),
        shards_(shards.begin(), shards.end()) {
    LN_CHECK(gradients.dtype == DType::kF32 && gradients.contiguous() &&
                 (gradients.device.type == DeviceType::kCPU || world.size() == 1),
             "gradients {} must be contiguous f32 in host memory", gradients.describe());
    if (!world_ || shards_.empty()) return;
    LN_CHECK(static_cast<int>(shards_.size()) == world_->size() + 1 && shards_.front() == 0 &&
                 shards_.back() == elements_,
             "{} shard limits for {} ranks and {} gradients", shards_.size(), world_->size(),
             elements_);
    bucket_elements_ =
        std::max(bucket_elements_ / world_->size(), std::min(bucket_elements_, kSmallestPiece));
    const int64_t own = shards_[world_->rank() + 1] - shards_[world_->rank()];
    slot_elements_ = (world_->size() - 1) * std::min(bucket_elements_, own);
    chunks_.resize(shards_.size());
    if (world_->transport() != "counting") staging_.resize(kOutstanding * slot_elements_);
  }

  void ready(int64_t begin, int64_t end) {
    LN_CHECK(0 <= begin && begin <= end && end <= elements_, "gradients [{}, {}) of {}", begin, end,
             elements_);
    if (!world_ || begin == end) return;
    if (pending_.end != begin) flush();
    if (pending_.begin == pending_.end) pending_.begin = begin;
    pending_.end = end;
    while (pending_.end - pending_.begin >= bucket_elements_) {
      queue_.push_back({pending_.begin, pending_.begin + bucket_elements_});
      pending_.begin += bucket_elements_;
    }
    start_queued();
  }

  void flush() {
    if (pending_.begin < pending_.end) queue_.push_back(pending_);
    pending_ = {};
  }

  void start_queued() {
    while (!queue_.empty() && running_.size() < kOutstanding) {
      const Bucket bucket = queue_.front();
      queue_.pop_front();
      running_.push_back(start(bucket));
    }
  }

  Communicator::Request start(const Bucket& bucket) {
    if (shards_.empty())
      return world_->start_all_reduce_sum(values_ + bucket.begin, bucket.end - bucket.begin);
    for (size_t m = 0; m < shards_.size(); ++m)
      chunks_[m] = std::clamp(shards_[m], bucket.begin, bucket.end);
    // Buckets end in the order of their start, so the slot of the one kOutstanding ago is free.
    float* staging = staging_.data() + (started_++ % kOutstanding) * slot_elements_;
    return world_->start_reduce_scatter(values_, chunks_, staging);
  }

  void wait() {
    if (!world_) return;
    if (error_) std::rethrow_exception(error_);
    flush();
    start_queued();
    while (!running_.empty()) {
      world_->wait(running_.front());
      running_.pop_front();
      start_queued();
    }
  }

  void progress() {
    if (!world_ || error_) return;
    try {
      world_->progress();
      while (!running_.empty() && world_->test(running_.front())) running_.pop_front();
      start_queued();
    } catch (...) {
      error_ = std::current_exception();
    }
  }

  std::unique_ptr<Communicator> world_;  // null: one rank
  float* values_;                        // [elements]
  int64_t elements_;
  int64_t bucket_elements_;
  std::vector<int64_t> shards_;  // [ranks + 1]; empty: all-reduce
  std::vector<int64_t> chunks_;  // scratch: what each rank owns of a bucket
  std::vector<float> staging_;   // [kOutstanding][slot_elements_]
  int64_t slot_elements_ = 0;
  size_t started_ = 0;
  Bucket pending_;                             // reported, not yet a bucket
  std::deque<Bucket> queue_;                   // not yet started
  std::deque<Communicator::Request> running_;  // in order of their start
  std::exception_ptr error_;
};

GradientSum::GradientSum(Communicator& world, const TensorView& gradients, int64_t bucket_bytes,
                         std::span<const int64_t> shards)
    : impl_(std::make_unique<Impl>(world, gradients, bucket_bytes, shards)) {}
GradientSum::~GradientSum() = default;

void GradientSum::ready(int64_t begin, int64_t end) { impl_->ready(begin, end); }
void GradientSum::wait() { impl_->wait(); }
void GradientSum::progress() { impl_->progress(); }
int64_t GradientSum::bytes_sent() const { return impl_->world_ ? impl_->world_->bytes_sent() : 0; }

int64_t GradientSum::staging_bytes() const {
  if (!impl_->world_) return 0;
  if (!impl_->shards_.empty())
    return static_cast<int64_t>(Impl::kOutstanding * sizeof(float)) * impl_->slot_elements_;
  const int64_t bucket = std::min(impl_->bucket_elements_, impl_->elements_);
  const int64_t buckets =
      std::min<int64_t>(Impl::kOutstanding,
                        (impl_->elements_ + impl_->bucket_elements_ - 1) / impl_->bucket_elements_);
  const int size = impl_->world_->size();
  return buckets * (size - 1) * block_begin(bucket, size, 1) * static_cast<int64_t>(sizeof(float));
}

}  // namespace longnet
