// The stream on which a Context's kernels are ordered, as the CUDA runtime's handle.
#pragma once

#include "core/context.h"

namespace longnet::cuda {

/// cudaStream_t of the context, null: the default stream.
inline void* context_stream(const Context&) { return nullptr; }

}  // namespace longnet::cuda
