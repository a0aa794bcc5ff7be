// See plan_report.h.
#include "train/plan_report.h"

#include "core/byte_count.h"
#include "core/device_runtime.h"
#include "train/learner.h"

namespace longnet {
namespace {

using Memory = std::vector<std::pair<std::string, int64_t>>;

/// Kernels of a GPU want other scratch than the CPU's: what a learner on a GPU takes.
Memory gpu_memory(const Config& config, Mesh& mesh) {
  Context context({.device = {DeviceType::kCUDA, 0}, .threads = 0, .counting = true});
  return Learner(context, config, mesh).memory();
}

}  // namespace

PlanReport plan_run(const Config& config_in, int ranks, int rank) {
  Config config = config_in;
  const int64_t data_ranks = std::max<int64_t>(1, config.parallel.data_ranks);
  if (ranks < 1 || ranks % data_ranks != 0)
    throw Error("plan on {} ranks: parallel.data_ranks={} must divide them", ranks, data_ranks);
  config.parallel.sequence_ranks = ranks / data_ranks;
  const int sequence_ranks = static_cast<int>(config.parallel.sequence_ranks);
  // The last ranks of a short sequence hold no token, and nothing to report on.
  const int64_t tokens_per_rank = (config.train.sequence_length - 1) / sequence_ranks + 1;
  const int holders = static_cast<int>((config.train.sequence_length - 1) / tokens_per_rank + 1);
  if (rank < 0) rank = holders / 2;
  if (rank >= holders && rank < sequence_ranks)
    throw Error(
        "--rank {}: holds no token of train.sequence_length={} on {} ranks; allowed: 0 to {}", rank,
        config.train.sequence_length, sequence_ranks, holders - 1);
  if (rank >= sequence_ranks)
    throw Error("--rank {}: the sequence has {} ranks; allowed: 0 to {}", rank, sequence_ranks,
                sequence_ranks - 1);

  Context context({.device = {}, .threads = 0, .counting = true});
  Mesh mesh;
  mesh.world = make_counting_communicator(ranks, rank);
  mesh.sequence = make_counting_communicator(sequence_ranks, rank);
  mesh.replicas = static_cast<int>(data_ranks);
  Learner learner(context, config, mesh);
  // One micro-batch represents all: they are equal, and a step sums gradients after the last only.
  const int64_t micro_batches = config.train.accumulation;
  const MicroBatch batch;
  learner.train_step({&batch, 1}, 1);
  context.work().repeat_since({}, micro_batches);

  PlanReport report;
  report.ranks = ranks;
  report.sequence_ranks = sequence_ranks;
  report.data_ranks = static_cast<int>(data_ranks);
  report.rank = rank;
  const SequencePlan& plan = learner.plan();
  report.local_tokens = plan.local_tokens();
  report.parameters = learner.layout().parameter_count();
  for (size_t k = 0; k < plan.branches().size(); ++k) {
    const int branch = static_cast<int>(k);
    BranchPlan b;
    b.segment_length = plan.branches()[k].segment_length;
    b.dilation = plan.branches()[k].dilation;
    b.local_segments = plan.local_segment_count(branch);
    for (const GatheredSegment& gathered : plan.gathered_segments(branch)) {
      b.gathered_ranks.push_back(gathered.ranks());
      int64_t rows = 0;
      for (int64_t h = 0; h < plan.heads(); ++h)
        rows += kept_rows(gathered.segment, gathered.segment.begin, gathered.segment.end,
                          head_offset(h, plan.heads(), b.dilation, plan.mode()), b.dilation)
                    .count;
      b.gathered_rows.push_back(rows);
    }
    report.branches.push_back(std::move(b));
  }
  const bool on_gpu = config.run.backend == "cuda" && device_runtime::built_with_cuda();
  report.memory = on_gpu ? gpu_memory(config, mesh) : learner.memory();
  for (const auto& [purpose, bytes] : report.memory)
    report.memory_total = checked_sum(report.memory_total, bytes, "the memory of one rank");
  const Traffic& traffic = learner.traffic();
  const auto per_step = [&](int64_t bytes) {
    return checked_product(bytes, micro_batches, "keys and values sent in a step");
  };
  report.forward_bytes = per_step(traffic.forward_bytes);
  report.forward_needed_bytes = per_step(traffic.forward_needed_bytes);
  report.backward_bytes = per_step(traffic.backward_bytes);
  report.gradient_bytes = learner.gradient_bytes_sent();
  report.parameter_bytes = learner.parameter_bytes_sent();
  report.matmul_flops = context.work().matmul_flops;
  report.attention_flops = context.work().attention_flops;
  report.recomputed_flops = context.work().recomputed_flops;
  const double tokens =
      static_cast<double>(learner.local_rows()) * static_cast<double>(micro_batches);
  report.flops_per_token =
      tokens > 0 ? (report.matmul_flops + report.attention_flops) / tokens : 0.0;
  return report;
}

}  // namespace longnet
