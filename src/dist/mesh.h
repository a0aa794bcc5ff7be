// Mesh: P_sequence x P_data ranks. Ranks of one sequence group share sequences; groups are
// data-parallel replicas. Rank = replica * P_sequence + place in the sequence (neighbours in a
// sequence are neighbours in the job, so they tend to be on one host).
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

/// sequence_ranks * data_ranks must equal world->size(); 0 for either means "the rest".
/// Throws Error naming both keys (parallel.sequence_ranks, parallel.data_ranks) and the job's size.
Mesh make_mesh(std::unique_ptr<Communicator> world, int64_t sequence_ranks, int64_t data_ranks);

/// The exchange of gathered keys and values over a sequence group. Creates its sub-communicators
/// (two per branch that straddles anywhere: even and odd segments) once; construction is collective
/// over `sequence`, which must have plan.ranks() ranks and outlive it. batch, head_dim: as in
/// GatherLayout. Memory for staging is taken at construction, where `sequence` works
/// (Communicator::device); buffers must lie there, too. On the counting transport nothing is
/// allocated and buffers may be addresses of no memory. Ranks must start transfers branch by
/// branch, even segments before odd ones.
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

  /// Sent by this rank so far; gradient_bytes stays 0 (GradientSum::bytes_sent knows them).
  const Traffic& traffic() const;
  /// Memory held for the reduce-scatters: (group size - 1) x own chunk, per gathered segment.
  int64_t staging_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Who owns what of a flat buffer of n elements: rank m elements [begin[m], begin[m + 1]) of the
/// result, begin: [ranks + 1]. Balanced to one unit of 64 elements (256 bytes), on whose multiples
/// all limits but n lie; with more ranks than units the last ones own nothing.
std::vector<int64_t> shard_limits(int64_t n, int ranks);

/// Sums of the flat gradient buffer over all ranks, in buckets, started as ranges become ready.
/// Adjoining ranges are joined up to a bucket, larger ones cut. Every element is added in rank
/// order, so the result depends on neither the buckets nor the timing. One rank: nothing happens.
/// With shard limits every element is summed on its owner only (reduce-scatter); the others keep
/// their own gradients there, which then mean nothing. Owned elements have the same bits as
/// without. On a GPU the sums of all-reduces and of what few ranks own are in NCCL's order.
class GradientSum {
 public:
  /// gradients: [n] f32 flat buffer, where `world` works (on the counting transport: where its
  /// device says). bucket_bytes: how much is summed at a time. Collective: the
  /// sums run on a communicator of their own, so they may be outstanding beside anything else.
  /// shards: [ranks + 1] limits as shard_limits gives, copied; empty: every rank gets all sums.
  /// With shards a bucket has one owner or a few, so it is cut into pieces of bucket_bytes / ranks
  /// (at least 64 KiB, at most bucket_bytes) to bound the memory; on a GPU one staging of at most
  /// bucket_bytes serves all, and buckets stay whole.
  GradientSum(Communicator& world, const TensorView& gradients, int64_t bucket_bytes = 16 << 20,
              std::span<const int64_t> shards = {});
  ~GradientSum();
  /// Elements [begin, end) are final on this rank; on a GPU: by the kernels started so far. Ranges
  /// come in buffer order (backward order).
  void ready(int64_t begin, int64_t end);
  /// Waits until every range reported so far is the sum over all ranks (where this rank owns it).
  /// On a GPU the host goes on, and later kernels run after the sums.
  void wait();
  /// Moves the sums on and starts the next buckets; keeps errors for wait().
  void progress();
  int64_t bytes_sent() const;
  /// Memory that the sums take beside the gradients, at most.
  int64_t staging_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The way back: every rank has updated its own range of the flat parameter buffer and gives it to
/// the others. Pieces of about a bucket start as they become ready, while the rest is updated.
/// One rank: nothing happens.
class ParameterGather {
 public:
  /// parameters: [n] flat buffer, where `world` works, in use from the first ready() to wait().
  /// shards: limits as above. Collective: it runs on a communicator of its own.
  ParameterGather(Communicator& world, const TensorView& parameters,
                  std::span<const int64_t> shards, int64_t bucket_bytes = 16 << 20);
  ~ParameterGather();
  /// Own elements before `end` (from the start of the flat buffer) have their new values. Rises
  /// from call to call; the last call of a round, also by ranks that own nothing, gives the own
  /// range's end.
  void ready(int64_t end);
  /// Waits until all ranks' elements have arrived; at once if nothing was started. On a GPU the host
  /// goes on, and later kernels run after it.
  void wait();
  /// Elements after which a range should be reported: pieces begin at multiples of it from the own
  /// range's begin.
  int64_t piece_elements() const;
  int64_t bytes_sent() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longnet
