// See sharded_moments.h. Every transfer is announced by a command {task, which, begin, count} from
// rank 0, so that an error of rank 0's between two transfers leaves nobody waiting.
#include "train/sharded_moments.h"

#include <algorithm>
#include <array>

#include "train/agreement.h"

namespace longnet {
namespace {

constexpr int64_t kPieceElements = 4 << 20;  // 16 MiB, as files are written

}  // namespace

ShardedMoments::ShardedMoments(Communicator& world, const Optimizer& optimizer,
                               std::vector<int64_t> begin)
    : world_(world), optimizer_(optimizer), begin_(std::move(begin)) {
  LN_CHECK(static_cast<int>(begin_.size()) == world.size() + 1 &&
               begin_[world.rank()] == optimizer.range().begin &&
               begin_[world.rank() + 1] == optimizer.range().end,
           "{} limits for {} ranks", begin_.size(), world.size());
}

const TensorView& ShardedMoments::moment(Which which) const {
  return which == kFirst ? optimizer_.first_moment() : optimizer_.second_moment();
}

void ShardedMoments::run_on_root(const std::function<void()>& work) {
  run_on_all(world_, [&] {
    if (world_.rank() != 0) return serve();
    try {
      work();
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

void ShardedMoments::serve() {
  for (;;) {
    std::array<int64_t, 4> words{};
    world_.broadcast(words.data(), sizeof words, 0);
    const auto [task, which, begin, count] = words;
    if (task == kEnd) return;
    piece_.resize(static_cast<size_t>(count));
    if (task == kGet)
      collect(static_cast<Which>(which), begin, piece_);
    else
      deliver(static_cast<Which>(which), begin, piece_);
  }
}

void ShardedMoments::get(Which which, int64_t begin, std::span<float> values) {
  const auto n = static_cast<int64_t>(values.size());
  for (int64_t at = 0; at < n; at += kPieceElements) {
    const int64_t count = std::min(kPieceElements, n - at);
    command(kGet, which, begin + at, count);
    collect(which, begin + at, values.subspan(at, count));
  }
}

void ShardedMoments::set(Which which, int64_t begin, std::span<const float> values) {
  const auto n = static_cast<int64_t>(values.size());
  for (int64_t at = 0; at < n; at += kPieceElements) {
    const int64_t count = std::min(kPieceElements, n - at);
    command(kSet, which, begin + at, count);
    piece_.assign(values.begin() + at, values.begin() + at + count);
    deliver(which, begin + at, piece_);
  }
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
      std::copy_n(moment(which).f32() + (first - begin_[owner]), last - first, part);
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
  if (first < last)
    std::copy(values.begin() + (first - begin), values.begin() + (last - begin),
              moment(which).f32() + (first - own.begin));
}

}  // namespace longnet
