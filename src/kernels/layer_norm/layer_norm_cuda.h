// Functions that layer_norm.cpp (the dispatcher) calls with a CUDA Context. Arguments are checked
// already and lie in GPU memory; meaning, shapes and types as in layer_norm.h. Not public.
//
// Every function throws Error in a build without CUDA. Sums have a fixed order: the same bits every
// time.
#pragma once

#include "kernels/layer_norm/layer_norm.h"

namespace longnet::cuda {

/// Bytes of device memory.
int64_t layer_norm_backward_workspace_bytes(const Context& context, int64_t width);
void layer_norm_forward(Context& context, const LayerNormForward& args);
void layer_norm_backward(Context& context, const LayerNormBackward& args, void* workspace);

}  // namespace longnet::cuda
