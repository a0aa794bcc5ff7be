// The CPU twin of cross_entropy.h, for the dispatcher only.
#pragma once

#include "kernels/cross_entropy/cross_entropy.h"

namespace longnet::cpu {

CrossEntropyResult cross_entropy(Context& context, const TensorView& logits,
                                 const TensorView& targets, float scale, bool with_gradient);

}  // namespace longnet::cpu
