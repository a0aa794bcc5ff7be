// One SDPA problem through cuDNN 9 (graph API, NVIDIA's header-only cudnn-frontend): plain
// attention of bf16 rows with log-sum-exp, and its backward. attention_sdpa.cpp uses it;
// attention_bench.cpp measures it for comparison.
//
//   forward   out_i = sum_j p_ij v_j, p_ij = exp(s_ij - lse_i), s_ij = scale <q_i, k_j>, lse_i in
//             nats
//   backward  the same p_ij from the *given* lse, delta_i = <grad_out_i, out_i> from the *given*
//             out (bf16), so that merged out and lse give one branch's share of the mixture's
//             gradient
//
// A graph is built once per shape and kept as long as the Context. cuDNN adds grad_query of
// different key tiles with atomics, so gradients may differ in the last float32 bits from run to
// run, before they are rounded to bf16. Twins: attention_cudnn_stub.cpp in builds without cuDNN;
// the emulator's tests/simt/sdpa_emulated.cpp.
#pragma once

#include <string>

#include "core/context.h"
#include "kernels/attention/attention_cudnn_plan.h"

namespace longnet::cudnn {

/// Why cuDNN is not available: not in this build, or older than 9.6.0 at run time. Empty if it is.
/// Any build.
std::string unavailable();

/// Why cuDNN cannot solve problems of this shape on the context's GPU, must not
/// (sdpa::known_defect), or cannot start there at all; empty if it can. The first call builds the
/// graph.
std::string refusal(Context& context, const sdpa::Shape& shape);

/// Device memory. Operands that sdpa::Shape calls packed are packed; the others have its strides.
struct Operands {
  const void *query = nullptr, *key = nullptr, *value = nullptr;  // bf16
  void* out = nullptr;             // bf16 packed; written by the forward, read by the backward
  float* lse = nullptr;            // [batch, heads, query rows]; likewise
  const void* grad_out = nullptr;  // bf16; backward only, as all below
  void *grad_query = nullptr, *grad_key = nullptr, *grad_value = nullptr;  // bf16 packed, written
  void* workspace = nullptr;  // sdpa::library_workspace_bytes(shape)
};
/// Ordered on the context's stream. Throws Error with cuDNN's message.
void run(Context& context, const sdpa::Shape& shape, const Operands& operands);

}  // namespace longnet::cudnn
