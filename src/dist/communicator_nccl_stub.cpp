// communicator_nccl.h in a build without CUDA. Twin: communicator_nccl.cpp.
#include "dist/communicator_nccl.h"

namespace longnet {

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator>,
                                                     const NcclOptions&) {
  throw Error("the nccl transport: {}", device_runtime::availability().reason);
}

}  // namespace longnet
