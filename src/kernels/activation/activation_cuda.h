// Functions that activation.cpp (the dispatcher) calls with a CUDA Context. Arguments are checked
// already and lie in GPU memory; meaning, shapes and types as in activation.h. Not public.
//
// Every function throws Error in a build without CUDA. Sums have a fixed order: the same bits every
// time.
#pragma once

#include "kernels/activation/activation.h"

namespace longnet::cuda {

/// Bytes of device memory.
int64_t activation_workspace_bytes(int64_t ffn_dim);
void activation_forward(Context& context, const ActivationForward& args, void* workspace);
void activation_backward(Context& context, const ActivationBackward& args, void* workspace);

}  // namespace longnet::cuda
