// The CPU twin of activation.h, for the dispatcher only.
#pragma once

#include "kernels/activation/activation.h"

namespace longnet::cpu {

/// Per thread: two rows (activation and its gradient) and one pair of partial norm gradients; with
/// bf16 four more rows (hidden, gate and their gradients, in float32).
int64_t activation_workspace_bytes(int threads, int64_t ffn_dim, DType dtype);
void activation_forward(Context& context, const ActivationForward& args, void* workspace);
void activation_backward(Context& context, const ActivationBackward& args, void* workspace);

}  // namespace longnet::cpu
