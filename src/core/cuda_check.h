// LN_CUDA: turns a failed CUDA runtime call into longnet::Error. Only CUDA sources include this.
//
// The message names the statement, CUDA's text, the device and the host. The check covers errors
// that the call itself returns; a failure inside a kernel shows at the next call that waits.
#pragma once

#include <cuda_runtime_api.h>

namespace longnet::internal {

/// Throws Error unless code is cudaSuccess. Clears the runtime's last error first, so that the next
/// call does not report it again. call: the failed statement.
void check_cuda(cudaError_t code, const char* call, const char* file, int line);

}  // namespace longnet::internal

#define LN_CUDA(call) ::longnet::internal::check_cuda((call), #call, __FILE__, __LINE__)
