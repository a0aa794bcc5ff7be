// Functions that optimizer.cpp (the dispatcher) calls with a CUDA Context. Arguments are checked
// already and lie in GPU memory, terms in host memory. Not public; every function throws Error in a
// build without CUDA.
#pragma once

#include "kernels/optimizer/optimizer_terms.h"

namespace longnet::cuda {

void adamw_update(Context& context, float* weight, float* first_moment, float* second_moment,
                  const float* gradient, int64_t n, const AdamWFactors& factors);
/// Both functions wait for the terms. workspace: device memory for them.
void stable_terms(Context& context, double* terms, float* second_moment, const float* gradient,
                  const AdamWFactors& factors, const SumRange& whole, const SumRange& part,
                  void* workspace);
void square_terms(Context& context, double* terms, const float* values, const SumRange& whole,
                  const SumRange& part, void* workspace);
void stable_apply(Context& context, float* weight, float* first_moment, const float* second_moment,
                  const float* gradient, int64_t n, const AdamWFactors& factors);

}  // namespace longnet::cuda
