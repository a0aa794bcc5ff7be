// The CPU twin of layer_norm.h, for the dispatcher and the fused activation, which check the
// arguments.
#pragma once

#include "kernels/layer_norm/layer_norm.h"

namespace longnet::cpu {

/// Bytes for one partial (weight, bias) gradient pair per thread.
int64_t layer_norm_partial_bytes(int threads, int64_t width);
void layer_norm_forward(Context& context, const LayerNormForward& args);
void layer_norm_backward(Context& context, const LayerNormBackward& args, void* workspace);

/// Normalises one row in place or out of place; returns mean and rstd. Float32 sums in 16 lanes.
void normalise_row(float* out, float* mean, float* rstd, const float* x, const float* weight,
                   const float* bias, float eps, int64_t width);
/// grad_x = or += the gradient of one row; adds the row's part of the weight gradients.
void normalise_row_backward(float* grad_x, float* grad_weight, float* grad_bias,
                            const float* grad_out, const float* x, const float* weight, float mean,
                            float rstd, bool accumulate, int64_t width);
/// grad_weight[i] += sum over threads of partials [threads][2][width], in thread order; bias
/// likewise.
void add_partials(float* grad_weight, float* grad_bias, const float* partials, int threads,
                  int64_t width);

}  // namespace longnet::cpu
