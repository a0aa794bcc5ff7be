// CUDA twin of fill.h. Not public; throws Error in a build without CUDA.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet::cuda {

/// values[...] = value, f32 or bf16 (rounded to nearest even), any strides.
void fill(Context& context, const TensorView& values, float value);

}  // namespace longnet::cuda
