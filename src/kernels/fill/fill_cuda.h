// Function that fill.cpp (the dispatcher) calls with a CUDA Context. Arguments are checked already.
// Not public; throws Error in a build without CUDA.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet::cuda {

void fill(Context& context, const TensorView& values, float value);

}  // namespace longnet::cuda
