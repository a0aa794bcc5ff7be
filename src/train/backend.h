// run.backend: the device that a rank computes on. All ranks agree on it, or refuse it, before any
// large allocation.
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

/// What one rank knows about the GPUs of its node.
struct VisibleGpus {
  std::string host;              // for messages
  int local_size = 1;            // ranks of the job on this node
  std::vector<std::string> ids;  // unique over all nodes, in the order of the rank's own indices
  std::string reason;            // why there is none
};

/// Index of the GPU for `rank`, in the rank's own numbering: the first visible GPU that no lower
/// rank has. If the ranks of a node see the same GPUs, it is the local rank; if a launcher shows
/// each rank its own GPU, it is 0. Nothing if none is left.
std::optional<int> gpu_of_rank(const std::vector<VisibleGpus>& ranks, int rank);
/// One line for a rank without a GPU: host, reason, remedy.
std::string no_gpu_message(const VisibleGpus& gpus, int local_rank);
/// One line for a GPU that is too old for the kernels; empty for any other.
std::string old_gpu_message(const std::string& host, const device_runtime::VisibleDevice& gpu);

/// The device of this rank for run.backend: "cpu", or "cuda" with a GPU of its own. Throws
/// AgreedError on all ranks if any rank has none: built without CUDA, no driver or an old one, too
/// few GPUs for the ranks of a node, compute capability below 8.0. Allocates no GPU memory.
/// Collective.
Device device_of_rank(Communicator& world, const std::string& backend);

/// The communicator for memory of the context's device: `world` itself on the CPU; on a GPU, NCCL
/// created from it. parallel: sets the time limit of all later waits for other ranks. Collective.
std::unique_ptr<Communicator> transport_of(const Context& context,
                                           std::unique_ptr<Communicator> world,
                                           const ParallelConfig& parallel);

}  // namespace longnet
