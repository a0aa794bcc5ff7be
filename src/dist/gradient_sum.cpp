// Sums of the flat gradient buffer over all ranks. See mesh.h.
//
// In host memory at most kOutstanding buckets are in progress, so their staging, not the size of
// the gradients, bounds the memory. Later buckets wait in a queue, which has the same order on all
// ranks. On a GPU every bucket starts as soon as it is ready, behind the kernels that wrote it and
// in the order of the transport's stream, so all of them can share one staging. With shards a
// bucket is a reduce-scatter whose chunks are the parts that each rank owns, most of them empty.
#include <algorithm>
#include <deque>
#include <exception>

#include "core/arena.h"
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
      : world_(same_ranks_for(world, gradients, "gradients")),
        values_(static_cast<float*>(gradients.data)),
        elements_(gradients.elements()),
        bucket_elements_(std::max<int64_t>(1, bucket_bytes / static_cast<int64_t>(sizeof(float)))),
        shards_(shards.begin(), shards.end()),
        on_gpu_(gradients.device.type == DeviceType::kCUDA) {
    LN_CHECK(gradients.dtype == DType::kF32 && gradients.contiguous(),
             "gradients {} must be contiguous f32", gradients.describe());
    if (!world_ || shards_.empty()) return;
    LN_CHECK(static_cast<int>(shards_.size()) == world_->size() + 1 && shards_.front() == 0 &&
                 shards_.back() == elements_,
             "{} shard limits for {} ranks and {} gradients", shards_.size(), world_->size(),
             elements_);
    const int64_t others = world_->size() - 1;
    const int64_t own = shards_[world_->rank() + 1] - shards_[world_->rank()];
    if (on_gpu_) {
      // Chunks that are staged are never more than the bucket (direct_is_shorter).
      slots_ = 1;
      slot_elements_ = std::min(others * std::min(bucket_elements_, own), bucket_elements_);
    } else {
      bucket_elements_ =
          std::max(bucket_elements_ / world_->size(), std::min(bucket_elements_, kSmallestPiece));
      slot_elements_ = others * std::min(bucket_elements_, own);
    }
    chunks_.resize(shards_.size());
    arena_ = std::make_unique<Arena>("gradient staging", world_->transport() == "counting",
                                     gradients.device);
    staging_ = static_cast<float*>(
        arena_->allocate_bytes(static_cast<int64_t>(slots_ * sizeof(float)) * slot_elements_));
  }

  ~Impl() {
    // While an exception unwinds, messages may still arrive: their memory must outlive this.
    if (std::uncaught_exceptions() > 0) arena_.release();
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
    while (!queue_.empty() && (world_->on_stream() || running_.size() < kOutstanding)) {
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
    // Buckets end in the order of their start, so the slot of the one kOutstanding ago is free; on
    // a stream each has ended before the next one begins.
    float* staging = staging_ + static_cast<int64_t>(started_++ % slots_) * slot_elements_;
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
      while (!world_->on_stream() && !running_.empty() && world_->test(running_.front()))
        running_.pop_front();
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
  bool on_gpu_;
  std::unique_ptr<Arena> arena_;  // with shards
  float* staging_ = nullptr;      // [slots_][slot_elements_]
  size_t slots_ = kOutstanding;
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
    return static_cast<int64_t>(impl_->slots_ * sizeof(float)) * impl_->slot_elements_;
  if (impl_->on_gpu_) return 0;  // NCCL has buffers of its own
  const int64_t bucket = std::min(impl_->bucket_elements_, impl_->elements_);
  const int64_t buckets =
      std::min<int64_t>(Impl::kOutstanding,
                        (impl_->elements_ + impl_->bucket_elements_ - 1) / impl_->bucket_elements_);
  const int size = impl_->world_->size();
  return buckets * (size - 1) * block_begin(bucket, size, 1) * static_cast<int64_t>(sizeof(float));
}

}  // namespace longnet
