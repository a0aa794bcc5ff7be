// Functions that embedding.cpp (the dispatcher) calls with a CUDA Context. Shapes are checked
// already, tokens are not. Meaning as in embedding.h. Not public; every function throws Error in a
// build without CUDA.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet::cuda {

void embedding_forward(Context& context, const TensorView& out, const TensorView& table,
                       const TensorView& tokens);
/// Bytes of device memory.
int64_t embedding_backward_workspace_bytes(int64_t tokens, int64_t vocabulary, int64_t dim);
void embedding_backward(Context& context, const TensorView& grad_table, const TensorView& grad_out,
                        const TensorView& tokens, void* workspace);

}  // namespace longnet::cuda
