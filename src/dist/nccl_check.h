// LN_NCCL: turns a failed NCCL call into longnet::Error. Only communicator_nccl.cpp includes this.
//
// Calls on a non-blocking communicator may return before they are done (ncclInProgress). That is
// not a failure here; the caller polls for the result.
#pragma once

#include <nccl.h>

namespace longnet::internal {

/// Throws Error, with statement, NCCL's text and last message, rank and host, unless the code is
/// ncclSuccess or ncclInProgress.
void check_nccl(ncclResult_t code, const char* call, const char* file, int line);

}  // namespace longnet::internal

#define LN_NCCL(call) ::longnet::internal::check_nccl((call), #call, __FILE__, __LINE__)
