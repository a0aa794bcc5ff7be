// Sums of the flat gradient buffer over all ranks. See mesh.h.
//
// At most kOutstanding buckets are under way: their staging, not the gradients' size, bounds the
// memory. Later buckets wait in a queue, which is the same on all ranks, in order.
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

  Impl(Communicator& world, const TensorView& gradients, int64_t bucket_bytes)
      : world_(world.size() == 1 ? nullptr
                                 : world.split_known(world.size(), world.rank(), 0, world.rank())),
        values_(static_cast<float*>(gradients.data)),
        elements_(gradients.elements()),
        bucket_elements_(std::max<int64_t>(1, bucket_bytes / static_cast<int64_t>(sizeof(float)))) {
    LN_CHECK(gradients.dtype == DType::kF32 && gradients.contiguous() &&
                 gradients.device.type == DeviceType::kCPU,
             "gradients {} must be contiguous f32 in host memory", gradients.describe());
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
      running_.push_back(
          world_->start_all_reduce_sum(values_ + bucket.begin, bucket.end - bucket.begin));
    }
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
  Bucket pending_;                             // reported, not yet a bucket
  std::deque<Bucket> queue_;                   // not yet started
  std::deque<Communicator::Request> running_;  // in order of their start
  std::exception_ptr error_;
};

GradientSum::GradientSum(Communicator& world, const TensorView& gradients, int64_t bucket_bytes)
    : impl_(std::make_unique<Impl>(world, gradients, bucket_bytes)) {}
GradientSum::~GradientSum() = default;

void GradientSum::ready(int64_t begin, int64_t end) { impl_->ready(begin, end); }
void GradientSum::wait() { impl_->wait(); }
void GradientSum::progress() { impl_->progress(); }
int64_t GradientSum::bytes_sent() const { return impl_->world_ ? impl_->world_->bytes_sent() : 0; }

int64_t GradientSum::staging_bytes() const {
  if (!impl_->world_) return 0;
  const int64_t bucket = std::min(impl_->bucket_elements_, impl_->elements_);
  const int64_t buckets =
      std::min<int64_t>(Impl::kOutstanding,
                        (impl_->elements_ + impl_->bucket_elements_ - 1) / impl_->bucket_elements_);
  const int size = impl_->world_->size();
  return buckets * (size - 1) * block_begin(bucket, size, 1) * static_cast<int64_t>(sizeof(float));
}

}  // namespace longnet
