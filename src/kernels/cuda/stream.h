// The stream on which a Context's kernels are ordered, as the CUDA runtime's handle.
#pragma once

#include "core/context.h"

namespace longnet::cuda {

/// cudaStream_t of the context; null on the CPU and in the emulator.
inline void* context_stream(const Context& context) { return context.stream(); }

}  // namespace longnet::cuda
