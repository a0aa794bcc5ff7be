// The oneDNN twin of linear.h, for the dispatcher only. Arguments are the same and checked already;
// T >= 1.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet::onednn {

void linear_forward(Context& context, const TensorView& out, const TensorView& x,
                    const TensorView& weight, const TensorView& bias, bool accumulate);
void linear_backward_input(Context& context, const TensorView& grad_x, const TensorView& grad_out,
                           const TensorView& weight, bool accumulate);
void linear_backward_weight(Context& context, const TensorView& grad_weight,
                            const TensorView& grad_bias, const TensorView& grad_out,
                            const TensorView& x);

}  // namespace longnet::onednn
