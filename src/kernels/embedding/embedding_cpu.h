// The CPU twin of embedding.h, for the dispatcher only.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet::cpu {

void embedding_forward(Context& context, const TensorView& out, const TensorView& table,
                       const TensorView& tokens);
void embedding_backward(Context& context, const TensorView& grad_table, const TensorView& grad_out,
                        const TensorView& tokens);

}  // namespace longnet::cpu
