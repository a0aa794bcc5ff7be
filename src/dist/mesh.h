// Mesh: P_sequence x P_data ranks. Ranks of one sequence group share sequences; groups are
// data-parallel replicas. Rank = replica * P_sequence + place in the sequence (neighbours in a
// sequence are neighbours in the job, so they tend to be on one host).
#pragma once

#include <memory>

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
/// GatherLayout. Memory for staging is taken at construction. On the counting transport nothing is
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

/// Sums of the flat gradient buffer over all ranks, in buckets, started as ranges become ready.
/// Adjoining ranges are joined up to a bucket, larger ones cut. Every element is added in rank
/// order, so the result depends on neither the buckets nor the timing. One rank: nothing happens.
class GradientSum {
 public:
  /// gradients: [n] f32 flat buffer. bucket_bytes: how much is summed at a time. Collective: the
  /// sums run on a communicator of their own, so they may be outstanding beside anything else.
  GradientSum(Communicator& world, const TensorView& gradients, int64_t bucket_bytes = 16 << 20);
  ~GradientSum();
  /// Elements [begin, end) are final on this rank. Ranges come in buffer order (backward order).
  void ready(int64_t begin, int64_t end);
  /// Waits until every range reported so far is the sum over all ranks.
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

}  // namespace longnet
