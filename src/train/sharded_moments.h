// ShardedMoments: gives rank 0's checkpoint code access to the moments of a sharded optimizer,
// piece by piece, addressed by their position in the flat buffer.
//
// Rank 0 works and sends requests; the others serve them until it is done. No rank holds more of
// another's moments than one piece of 16 MiB. A piece spans as many tensors as fit, so that small
// tensors do not cost a transfer each. It reads and writes no file.
#pragma once

#include <functional>
#include <vector>

#include "dist/communicator.h"
#include "train/checkpoint.h"
#include "train/optimizer.h"

namespace longnet {

class ShardedMoments final : public MomentPieces {
 public:
  /// begin: [ranks + 1] limits of the ranks' ranges. world and optimizer must outlive this.
  /// context: the context of the moments' device.
  ShardedMoments(Context& context, Communicator& world, const Optimizer& optimizer,
                 std::vector<int64_t> begin);

  /// Rank 0 runs `work`, which may call get() and set() but no other collective; the others serve it. An
  /// error ends all ranks as run_on_root does (train/agreement.h). Collective.
  void run_on_root(const std::function<void()>& work);

  /// Only inside `work`. Fast if positions rise from call to call. Values passed to set() have
  /// arrived when run_on_root() returns.
  void get(Which which, int64_t begin, std::span<float> values) override;
  void set(Which which, int64_t begin, std::span<const float> values) override;

 private:
  enum Task : int64_t { kGet, kSet, kEnd };
  void serve();
  void throw_failure();
  template <typename Copy>
  void try_copy(const Copy& copy);
  void fetch(Which which, int64_t begin);
  void flush();
  void command(Task task, int64_t which, int64_t begin, int64_t count);
  void collect(Which which, int64_t begin, std::span<float> values);
  void deliver(Which which, int64_t begin, std::span<const float> values);
  const TensorView& moment(Which which) const;

  Context& context_;
  Communicator& world_;
  const Optimizer& optimizer_;
  std::vector<int64_t> begin_;
  std::vector<float> piece_;
  std::string failure_;  // of a copy between two transfers
  // Rank 0: what piece_ holds, elements [piece_begin_, piece_begin_ + piece_.size()) of
  // piece_which_.
  enum class Holds { kNothing, kFetched, kToSend } holds_ = Holds::kNothing;
  Which piece_which_ = kFirst;
  int64_t piece_begin_ = 0;
};

}  // namespace longnet
