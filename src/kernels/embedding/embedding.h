// Token embedding: rows of a table; its gradient is a scattered sum. Rows and table are each f32 or
// bf16; the gradient's sums are f32. Twins: embedding_reference.cpp, embedding_cpu.cpp,
// embedding_cuda.cu.
#pragma once

#include <span>

#include "core/context.h"
#include "core/tensor.h"

namespace longnet {

/// Throws Error naming the first of these tokens (host memory) outside [0, vocabulary). Call it
/// before sending tokens to a GPU: kernels there cannot throw.
void check_tokens(std::span<const int64_t> tokens, int64_t vocabulary);

/// out [T, C] = table [V, C] rows at tokens [T] (i64). A token outside [0, V) throws, naming it; on
/// a GPU its row becomes NaN, and nothing outside the table is read.
void embedding_forward(Context& context, const TensorView& out, const TensorView& table,
                       const TensorView& tokens);
/// Bytes of scratch on the context's device for embedding_backward of T tokens; 0 on the CPU.
int64_t embedding_backward_workspace_bytes(const Context& context, int64_t tokens,
                                           int64_t vocabulary, int64_t dim);
/// grad_table [V, C] f32 += rows of grad_out [T, C], in an order that depends on the tokens alone
/// (on the CPU their own order): the same bits every time. On a GPU a token outside [0, V) adds
/// nothing. workspace: not read on the CPU.
void embedding_backward(Context& context, const TensorView& grad_table, const TensorView& grad_out,
                        const TensorView& tokens, void* workspace = nullptr);

namespace reference {
void embedding_forward(const TensorView& out, const TensorView& table, const TensorView& tokens);
void embedding_backward(const TensorView& grad_table, const TensorView& grad_out,
                        const TensorView& tokens);
}  // namespace reference

}  // namespace longnet
