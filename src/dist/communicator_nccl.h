// The NCCL transport: the three start_* operations on GPU memory. Twins: communicator_nccl.cpp, and
// communicator_nccl_stub.cpp in a build without CUDA.
//
// Everything small and in host memory (barrier, broadcast, sums of doubles, strings,
// all_gather_host) uses the communicator that this one was created from, with the same time limit.
// All NCCL communicators of a process share one stream: an operation runs after all work that the
// compute stream had when the operation started, and after earlier operations; wait() makes later
// work of the compute stream run after it. So wait() does not block the host, and the host may read
// the result only after Context::wait(). Sums: all-reduce, equal chunks, and chunks of which a few
// hold most of the data are added in NCCL's order, so their bits may differ from the mpi
// transport's; other ragged chunks are added in rank order in float32. tests/simt/ranks runs this
// source over an emulation of NCCL; it has not run on a GPU.
#pragma once

#include <memory>

#include "core/device_runtime.h"
#include "dist/communicator.h"

namespace longnet {

struct NcclOptions {
  device_runtime::Stream compute = nullptr;  // Context::stream(); outlives the communicator
  Device device{DeviceType::kCUDA, 0};       // Context::device()
  double timeout_seconds = 600;              // parallel.timeout_s; 0: never
};

/// A communicator of the ranks of `host`, which it takes over, on the selected device of each rank.
/// Operations give up after the timeout, creation included: all NCCL communicators of this process
/// are aborted, so that nothing on the GPU keeps waiting, and the next call throws one line with
/// rank, host and operation. Errors that NCCL itself detects (a lost peer) end the same way.
/// Destroy communicators before the MpiSession. Collective.
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host,
                                                     const NcclOptions& options);

namespace internal {
/// values [n] += or = sums in rank order: values is member `rank`'s part, staging [size - 1][n] has
/// the others'. In rank_order_sum_cuda.cu.
void add_in_rank_order(device_runtime::Stream stream, float* values, const float* staging, int rank,
                       int size, int64_t n);
}  // namespace internal

}  // namespace longnet
