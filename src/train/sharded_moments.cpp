// See sharded_moments.h. Rank 0 announces every transfer with a command {task, which, begin,
// count}, so an error on rank 0 between two transfers leaves no rank waiting.
#include "train/sharded_moments.h"

#include <algorithm>
#include <array>
#include <exception>
#include <utility>

#include "core/failure.h"
#include "core/host_copy.h"
#include "train/agreement.h"

namespace longnet {
namespace {

constexpr int64_t kPieceElements = 4 << 20;  // 16 MiB, as files are written

}  // namespace

ShardedMoments::ShardedMoments(Context& context, Communicator& world, const Optimizer& optimizer,
                               std::vector<int64_t> begin)
    : context_(context), world_(world), optimizer_(optimizer), begin_(std::move(begin)) {
  LN_CHECK(static_cast<int>(begin_.size()) == world.size() + 1 &&
               begin_[world.rank()] == optimizer.range().begin &&
               begin_[world.rank() + 1] == optimizer.range().end,
           "{} limits for {} ranks", begin_.size(), world.size());
  piece_.reserve(static_cast<size_t>(kPieceElements + kSumCell));  // serve() must not fail for it
}

const TensorView& ShardedMoments::moment(Which which) const {
  return which == kFirst ? optimizer_.first_moment() : optimizer_.second_moment();
}

void ShardedMoments::run_on_root(const std::function<void()>& work) {
  run_on_all(world_, [&] {
    failure_.clear();
    if (world_.rank() != 0) return serve();
    holds_ = Holds::kNothing;
    try {
      work();
      flush();
    } catch (...) {
      command(kEnd, 0, 0, 0);
      throw;
    }
    command(kEnd, 0, 0, 0);
  });
}

void ShardedMoments::command(Task task, int64_t which, int64_t begin, int64_t count) {
  std::array<int64_t, 4> words{task, which, begin, count};
  world_.broadcast(words.data(), sizeof words, 0);
}

/// Collective with rank 0's fetch() and flush(). A copy that fails here is thrown at the end, since
/// the others would wait for the transfers that follow.
void ShardedMoments::serve() {
  const LoneWork others;  // rank 0 writes and checks files between two transfers
  for (;;) {
    std::array<int64_t, 4> words{};
    world_.broadcast(words.data(), sizeof words, 0);
    const auto [task, which, begin, count] = words;
    if (task == kEnd) return throw_failure();
    piece_.resize(static_cast<size_t>(count));
    if (task == kGet)
      collect(static_cast<Which>(which), begin, piece_);
    else
      deliver(static_cast<Which>(which), begin, piece_);
  }
}

void ShardedMoments::throw_failure() {
  if (!failure_.empty()) throw Error("{}", std::exchange(failure_, ""));
}

template <typename Copy>
void ShardedMoments::try_copy(const Copy& copy) {
  try {
    copy();
  } catch (const std::exception& error) {
    failure_ = failure_text(error);
  }
}

void ShardedMoments::fetch(Which which, int64_t begin) {
  const int64_t count = std::min(kPieceElements, begin_.back() - begin);
  command(kGet, which, begin, count);
  piece_.resize(static_cast<size_t>(count));
  collect(which, begin, piece_);
  throw_failure();
  holds_ = Holds::kFetched;
  piece_which_ = which;
  piece_begin_ = begin;
}

void ShardedMoments::get(Which which, int64_t begin, std::span<float> values) {
  flush();
  const int64_t end = begin + static_cast<int64_t>(values.size());
  LN_CHECK(begin >= 0 && end <= begin_.back(), "moments [{}, {}) of {}", begin, end, begin_.back());
  for (int64_t at = begin; at < end;) {
    const auto held_end = piece_begin_ + static_cast<int64_t>(piece_.size());
    if (holds_ != Holds::kFetched || piece_which_ != which || at < piece_begin_ || at >= held_end) {
      fetch(which, at);
      continue;
    }
    const int64_t count = std::min(end, held_end) - at;
    std::copy_n(piece_.begin() + (at - piece_begin_), count, values.begin() + (at - begin));
    at += count;
  }
}

void ShardedMoments::set(Which which, int64_t begin, std::span<const float> values) {
  const int64_t end = begin + static_cast<int64_t>(values.size());
  LN_CHECK(begin >= 0 && end <= begin_.back(), "moments [{}, {}) of {}", begin, end, begin_.back());
  for (int64_t at = begin; at < end;) {
    const auto held_end = piece_begin_ + static_cast<int64_t>(piece_.size());
    // Between tensors lies only padding, less than a unit of 64 and always zero.
    const bool follows = holds_ == Holds::kToSend && piece_which_ == which && at >= held_end &&
                         at < held_end + kSumCell && at < piece_begin_ + kPieceElements;
    if (!follows) {
      flush();
      holds_ = Holds::kToSend;
      piece_which_ = which;
      piece_begin_ = at;
      piece_.clear();
    }
    piece_.resize(static_cast<size_t>(at - piece_begin_), 0.0f);
    const int64_t count = std::min(end, piece_begin_ + kPieceElements) - at;
    piece_.insert(piece_.end(), values.begin() + (at - begin),
                  values.begin() + (at - begin + count));
    at += count;
  }
}

void ShardedMoments::flush() {
  if (holds_ != Holds::kToSend) return;
  holds_ = Holds::kNothing;
  command(kSet, piece_which_, piece_begin_, static_cast<int64_t>(piece_.size()));
  deliver(piece_which_, piece_begin_, piece_);
  throw_failure();
}

/// Every owner's part of [begin, begin + values.size()) to all ranks: the transport has no transfer
/// between two of them. What rank 0 owns stays where it is.
void ShardedMoments::collect(Which which, int64_t begin, std::span<float> values) {
  const int64_t end = begin + static_cast<int64_t>(values.size());
  for (int owner = 0; owner < world_.size(); ++owner) {
    const int64_t first = std::max(begin, begin_[owner]), last = std::min(end, begin_[owner + 1]);
    if (first >= last) continue;
    float* part = values.data() + (first - begin);
    if (owner == world_.rank())
      try_copy([&] {
        copy_to_host(context_, part, moment(which).slice(0, first - begin_[owner], last - first));
      });
    if (owner != 0)
      world_.broadcast(part, (last - first) * static_cast<int64_t>(sizeof(float)), owner);
  }
}

/// Rank 0's values (in piece_) to all ranks, each of which keeps what it owns.
void ShardedMoments::deliver(Which which, int64_t begin, std::span<const float> values) {
  const auto count = static_cast<int64_t>(values.size());
  world_.broadcast(piece_.data(), count * static_cast<int64_t>(sizeof(float)), 0);
  const ParameterRange own = optimizer_.range();
  const int64_t first = std::max(begin, own.begin), last = std::min(begin + count, own.end);
  if (first >= last) return;
  try_copy([&] {
    copy_from_host(context_, moment(which).slice(0, first - own.begin, last - first),
                   values.data() + (first - begin));
  });
}

}  // namespace longnet
