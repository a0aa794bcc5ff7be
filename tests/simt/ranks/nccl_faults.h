// What may go wrong in the stand-in of NCCL (nccl_emulated.cpp): a test sets it, or the environment
// variable LN_NCCL_FAULT="KIND RANK OPERATION" for one rank of a program, KIND as below.
#pragma once

#include <cstdint>
#include <string>

namespace longnet::simt {

struct NcclFault {
  /// "": none. "error": the operation never ends and the communicator reports a lost peer.
  /// "hang": the operation never ends. "kill": the process ends by SIGKILL. "refuse": the call
  /// returns an error. "fail_to_connect", "never_connect": the first communicator's set-up does.
  std::string kind;
  int64_t operation = 0;  // counted over all communicators of the process, from 0
};
void set_nccl_fault(const NcclFault& fault);

/// Calls so far of the library function, for example "ncclReduce".
int64_t nccl_calls(const std::string& function);

}  // namespace longnet::simt
