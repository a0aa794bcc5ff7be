// Sets every element of a view to one value; rows may be strided (last axis contiguous).
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet {

/// values[...] = value; f32.
void fill(Context& context, const TensorView& values, float value);

}  // namespace longnet
