// Function that cast.cpp (the dispatcher) calls with a CUDA Context. Arguments are checked already.
// Not public; throws Error in a build without CUDA.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet::cuda {

void cast(Context& context, const TensorView& out, const TensorView& in);

}  // namespace longnet::cuda
