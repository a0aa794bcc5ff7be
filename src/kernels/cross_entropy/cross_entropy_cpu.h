// The CPU twin of cross_entropy.h, for the dispatcher only.
#pragma once

#include "kernels/cross_entropy/cross_entropy.h"

namespace longnet::cpu {

void cross_entropy(Context& context, CrossEntropySums* sums, const TensorView& logits,
                   const TensorView& targets, float scale, bool with_gradient);

}  // namespace longnet::cpu
