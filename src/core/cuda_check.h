// LN_CUDA: turns a failed CUDA runtime call into longnet::Error. Only CUDA sources include this.
//
// The message names the statement, CUDA's text, the device and the host. It covers calls that
// return an error at once; a kernel's own failure shows at the next call that waits.
#pragma once

#include <cuda_runtime_api.h>

namespace longnet::internal {

/// Throws Error unless code is cudaSuccess; clears the runtime's last error, so that the next call
/// is not blamed for it. call: the failed statement.
void check_cuda(cudaError_t code, const char* call, const char* file, int line);

}  // namespace longnet::internal

#define LN_CUDA(call) ::longnet::internal::check_cuda((call), #call, __FILE__, __LINE__)
