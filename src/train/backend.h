// run.backend: which device a rank computes on, agreed on and refused before anything large is
// taken.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/context.h"
#include "core/device_runtime.h"
#include "dist/communicator.h"

namespace longnet {

/// What one rank knows of its node's GPUs.
struct VisibleGpus {
  std::string host;              // for messages
  int local_size = 1;            // ranks of the job on this node
  std::vector<std::string> ids;  // unique over all nodes, in the order of the rank's own indices
  std::string reason;            // why there is none
};

/// The GPU of `rank`, as its own index: the first one it sees that no lower rank has. Where the
/// ranks of a node see the same GPUs that is its place on the node; where a launcher shows each
/// rank its own, index 0. Nothing if none is left.
std::optional<int> gpu_of_rank(const std::vector<VisibleGpus>& ranks, int rank);
/// One line for a rank without a GPU: host, why, what to do.
std::string no_gpu_message(const VisibleGpus& gpus, int local_rank);
/// One line for a GPU that is too old for the kernels; empty if it is not.
std::string old_gpu_message(const std::string& host, const device_runtime::VisibleDevice& gpu);

/// The device of this rank for run.backend: "cpu", or "cuda" with a GPU of its own. Collective.
/// Throws AgreedError on all ranks if any rank has none: built without CUDA, no driver or an old
/// one, too few GPUs for the ranks of a node, a GPU of compute capability below 8.0. Takes no GPU
/// memory.
Device device_of_rank(Communicator& world, const std::string& backend);

/// The communicator for memory of the context's device: `world` itself on the CPU, NCCL made from
/// it on a GPU. Collective. parallel: the time limit of all waits for other ranks from now on.
std::unique_ptr<Communicator> transport_of(const Context& context,
                                           std::unique_ptr<Communicator> world,
                                           const ParallelConfig& parallel);

}  // namespace longnet
