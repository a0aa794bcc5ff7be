// Conversion of a tensor between float32 and bfloat16: the bf16 copy of the parameters, and
// gradients that enter a matrix product. Twins: cast_reference.cpp, cast_cpu.cpp, cast_cuda.cu.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet {

/// out[i] = in[i], rounded to out's type (nearest, ties to even; overflow gives infinity; NaN stays
/// NaN). Any shape, contiguous, with equal element counts, each f32 or bf16. On a GPU also two
/// matrices of one shape with padded rows; the padding keeps its values. A rounding reads 4 and
/// writes 2 bytes per element. out and in must not overlap.
void cast(Context& context, const TensorView& out, const TensorView& in);

namespace reference {
void cast(const TensorView& out, const TensorView& in);
}  // namespace reference

}  // namespace longnet
