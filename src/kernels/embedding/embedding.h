// Token embedding: rows of a table, and the scattered sum that is its gradient. Rows and table are
// f32 or bf16 each; the gradient's sums are f32.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet {

/// out [T, C] = table [V, C] rows at tokens [T] (i64). A token outside [0, V) throws, naming it.
void embedding_forward(Context& context, const TensorView& out, const TensorView& table,
                       const TensorView& tokens);
/// grad_table [V, C] f32 += rows of grad_out [T, C], added in token order (same bits every time).
void embedding_backward(Context& context, const TensorView& grad_table, const TensorView& grad_out,
                        const TensorView& tokens);

namespace reference {
void embedding_forward(const TensorView& out, const TensorView& table, const TensorView& tokens);
void embedding_backward(const TensorView& grad_table, const TensorView& grad_out,
                        const TensorView& tokens);
}  // namespace reference

}  // namespace longnet
