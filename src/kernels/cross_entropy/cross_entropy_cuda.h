// Functions that cross_entropy.cpp (the dispatcher) calls with a CUDA Context. Shapes are checked
// already, targets are not. Meaning as in cross_entropy.h. Not public; every function throws Error
// in a build without CUDA.
#pragma once

#include "kernels/cross_entropy/cross_entropy.h"

namespace longnet::cuda {

int64_t cross_entropy_sums_bytes(int64_t max_rows);
void cross_entropy_begin(Context& context, void* sums);
void cross_entropy(Context& context, void* sums, const TensorView& logits,
                   const TensorView& targets, float scale, bool with_gradient);

}  // namespace longnet::cuda
