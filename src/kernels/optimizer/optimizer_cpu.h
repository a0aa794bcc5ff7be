// The CPU twin of optimizer.h, for the dispatcher only; arguments are checked already.
#pragma once

#include "kernels/optimizer/optimizer_terms.h"

namespace longnet::cpu {

void adamw_update(Context& context, float* weight, float* first_moment, float* second_moment,
                  const float* gradient, int64_t n, const AdamWFactors& factors);
/// v and the terms of `part` of the sum of g^2 / max(v, eps^2) over `whole`.
void stable_terms(Context& context, double* terms, float* second_moment, const float* gradient,
                  const AdamWFactors& factors, const SumRange& whole, const SumRange& part);
double stable_sum(Context& context, float* second_moment, const float* gradient,
                  const AdamWFactors& factors, const SumRange& whole);
void stable_apply(Context& context, float* weight, float* first_moment, const float* second_moment,
                  const float* gradient, int64_t n, const AdamWFactors& factors);
void square_terms(Context& context, double* terms, const float* values, const SumRange& whole,
                  const SumRange& part);
double square_sum(Context& context, const float* values, const SumRange& whole);

}  // namespace longnet::cpu
