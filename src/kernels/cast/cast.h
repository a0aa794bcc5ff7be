// Conversion of a tensor between float32 and bfloat16: the bf16 copy of the parameters, gradients
// that enter a matrix product. Twins: cast_reference.cpp, cast_cpu.cpp,
// cast_cuda.cu.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet {

/// out[i] = in[i], rounded to out's type (nearest, ties to even; too large: infinity; NaN stays
/// NaN). Any shape, contiguous, of equal element counts; on a GPU also two matrices of one shape
/// whose rows lie apart, what is between rows stays. Each f32 or bf16. Reads 4 and writes 2 bytes
/// per element of a rounding. The memory of out and in must not overlap.
void cast(Context& context, const TensorView& out, const TensorView& in);

namespace reference {
void cast(const TensorView& out, const TensorView& in);
}  // namespace reference

}  // namespace longnet
