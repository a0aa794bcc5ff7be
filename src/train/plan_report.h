// The cost of a configuration on P ranks, found without running it: the code of the training step
// on a counting Context, counting arenas and the counting transport.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/config.h"

namespace longnet {

struct BranchPlan {
  int64_t segment_length = 0, dilation = 0;
  int64_t local_segments = 0;           // entirely on this rank
  std::vector<int64_t> gathered_ranks;  // ranks of each of its gathered segments
  std::vector<int64_t> gathered_rows;   // rows of that segment, all heads
};

struct PlanReport {
  int ranks = 1, sequence_ranks = 1, data_ranks = 1, rank = 0;  // of the sequence group
  int64_t local_tokens = 0;
  int64_t parameters = 0;
  std::vector<BranchPlan> branches;
  std::vector<std::pair<std::string, int64_t>> memory;  // bytes by purpose, this rank
  int64_t memory_total = 0;
  // Bytes this rank sends in one optimizer step.
  int64_t forward_bytes = 0, forward_needed_bytes = 0, backward_bytes = 0, gradient_bytes = 0;
  int64_t parameter_bytes = 0;  // updated ones, with parallel.shard_optimizer
  // FLOPs of this rank in one optimizer step (forward and backward), and per token it trains on;
  // recomputed ones (train.recompute) stand apart and are part of neither.
  double matmul_flops = 0, attention_flops = 0, recomputed_flops = 0, flops_per_token = 0;
};

/// ranks: of the whole job; parallel.data_ranks of config is kept. rank: of the sequence group; -1:
/// the middle one (which has neighbours on both sides). With run.backend cuda, memory is that of a
/// GPU; a build without CUDA counts the CPU kernels' scratch instead. Throws the same Errors as
/// training.
PlanReport plan_run(const Config& config, int ranks, int rank = -1);

}  // namespace longnet
