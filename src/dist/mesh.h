// Mesh: P_sequence x P_data ranks. Ranks of a sequence group share sequences; the groups are
// data-parallel replicas. Rank = replica * P_sequence + index in the sequence group, so that
// neighbours in a sequence are neighbours in the job and tend to be on one host.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/key_value_exchange.h"
#include "core/sequence_plan.h"
#include "dist/communicator.h"

namespace longnet {

struct Mesh {
  std::unique_ptr<Communicator> world;     // all ranks: gradients, loss
  std::unique_ptr<Communicator> sequence;  // ranks of my sequence
  int replica = 0;                         // my data-parallel replica
  int replicas = 1;                        // P_data
  int sequence_rank() const { return sequence->rank(); }
  int sequence_ranks() const { return sequence->size(); }
};

/// sequence_ranks * data_ranks must equal world->size(); 0 for either means "the rest". Throws
/// Error naming both keys (parallel.sequence_ranks, parallel.data_ranks) and the job's size.
Mesh make_mesh(std::unique_ptr<Communicator> world, int64_t sequence_ranks, int64_t data_ranks);

/// The exchange of gathered keys and values over a sequence group. The constructor creates its
/// sub-communicators (for each branch with straddling segments, one for even and one for odd
/// segments) and allocates staging where `sequence` works (Communicator::device); buffers must lie
/// there too. It is collective over `sequence`, which must have plan.ranks() ranks and outlive
/// this. batch, head_dim: as in GatherLayout. The counting transport allocates nothing, and buffers
/// may be addresses without memory. Ranks must start transfers branch by branch, even segments
/// before odd ones.
class SequenceExchange final : public KeyValueExchange {
 public:
  SequenceExchange(Communicator& sequence, const SequencePlan& plan, int64_t batch,
                   int64_t head_dim);
  ~SequenceExchange() override;
  void start_gather(int branch, int which, const TensorView& buffer) override;
  void wait_gather(int branch, int which) override;
  void start_reduce(int branch, int which, const TensorView& buffer) override;
  void wait_reduce(int branch, int which) override;
  void progress() override;

  /// Bytes that this rank has sent; gradient_bytes stays 0 (GradientSum::bytes_sent counts them).
  const Traffic& traffic() const;
  /// Memory of the reduce-scatters' staging: (group size - 1) x own chunk, per gathered segment.
  int64_t staging_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Ownership of a flat buffer of n elements: rank m owns elements [begin[m], begin[m + 1]) of the
/// result; begin: [ranks + 1]. All limits but n are multiples of a unit of 64 elements (256 bytes),
/// and shares differ by at most one unit; with more ranks than units the last ranks own nothing.
std::vector<int64_t> shard_limits(int64_t n, int ranks);

/// Sums the flat gradient buffer over all ranks, in buckets that start as ranges become ready.
/// Adjoining ranges are joined up to a bucket; larger ones are cut. Every element is added in rank
/// order, so the result depends neither on the buckets nor on timing. With one rank there is
/// nothing to do. With shard limits every element is summed on its owner only (reduce-scatter); the
/// other ranks keep their own, then meaningless, gradients there. Owned elements have the same bits
/// as without shards. On a GPU, all-reduce and chunks of which a few hold most of the data are
/// summed in NCCL's order.
class GradientSum {
 public:
  /// gradients: [n] f32 flat buffer, where `world` works (on the counting transport: where its
  /// device says). bucket_bytes: size of one sum. Collective: the sums run on a communicator of
  /// their own, so they may be outstanding beside any other operation. shards: [ranks + 1] limits
  /// as from shard_limits, copied; empty: every rank gets all sums. With shards a bucket has one or
  /// a few owners; to bound the memory it is cut into pieces of bucket_bytes / ranks (at least 64
  /// KiB, at most bucket_bytes). On a GPU one staging buffer of at most bucket_bytes serves all,
  /// and buckets stay whole.
  GradientSum(Communicator& world, const TensorView& gradients, int64_t bucket_bytes = 16 << 20,
              std::span<const int64_t> shards = {});
  ~GradientSum();
  /// Elements [begin, end) are final on this rank; on a GPU: after the kernels started so far.
  /// Ranges come in buffer order (backward order).
  void ready(int64_t begin, int64_t end);
  /// Waits until every range reported so far is the sum over all ranks (where this rank owns it).
  /// On a GPU the host does not block; later kernels run after the sums.
  void wait();
  /// Advances the sums and starts the next buckets; keeps errors for wait().
  void progress();
  int64_t bytes_sent() const;
  /// Upper bound of the memory that the sums take besides the gradients.
  int64_t staging_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// All-gather of updated parameters: every rank has updated its own range of the flat parameter
/// buffer and sends it to the others. Pieces of about a bucket start as they become ready, while
/// the rest is updated. With one rank there is nothing to do.
class ParameterGather {
 public:
  /// parameters: [n] flat buffer, where `world` works; in use from the first ready() to wait().
  /// shards: limits as above. Collective: it runs on a communicator of its own.
  ParameterGather(Communicator& world, const TensorView& parameters,
                  std::span<const int64_t> shards, int64_t bucket_bytes = 16 << 20);
  ~ParameterGather();
  /// Own elements before `end` (from the start of the flat buffer) have their new values. `end`
  /// rises from call to call; the last call of a round, also on ranks that own nothing, passes the
  /// end of the own range.
  void ready(int64_t end);
  /// Waits until all ranks' elements have arrived; returns at once if nothing was started. On a GPU
  /// the host does not block; later kernels run after it.
  void wait();
  /// Elements after which to report a range: pieces begin at multiples of it from the start of the
  /// own range.
  int64_t piece_elements() const;
  int64_t bytes_sent() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longnet
