// Sets every element of a view to one value; rows may be strided (last axis contiguous).
// Twins: fill_cpu.cpp, fill_cuda.cu. No reference of its own: the definition is one assignment.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet {

/// values[...] = value; f32, or bf16 (rounded to nearest even).
void fill(Context& context, const TensorView& values, float value);

}  // namespace longnet
