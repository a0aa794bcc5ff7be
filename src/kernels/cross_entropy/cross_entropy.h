// Softmax cross entropy of one chunk of tokens. The model calls it chunk by chunk, so that the
// logits of all N tokens never exist at once.
//
//   loss_t  = log(sum_v exp(logits_tv)) - logits_t,target
//   grad_tv = (softmax_tv - [v = target]) scale
//
// Targets of -1 are ignored: no loss, zero gradient. The chunks' losses are summed in device
// memory, so no chunk is waited for. Twins: cross_entropy_reference.cpp, cross_entropy_cpu.cpp,
// cross_entropy_cuda.cu.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet {

struct CrossEntropyResult {
  double loss_sum = 0;  // nats, over the targets that count
  int64_t count = 0;    // targets that count
};

/// Sums since cross_entropy_begin. On a GPU the scratch of one chunk follows them in memory.
struct CrossEntropySums {
  double nats;
  int64_t count;       // targets that count
  int64_t rows;        // seen so far
  int64_t bad_row;     // first of them whose target is outside [-1, V); -1: none
  int64_t bad_target;  // that target
};

/// Bytes of device memory for the sums; chunks may have at most max_rows rows.
int64_t cross_entropy_sums_bytes(const Context& context, int64_t max_rows);
/// Resets sums (CrossEntropySums in device memory).
void cross_entropy_begin(Context& context, void* sums);
/// logits: [c, V] f32; replaced by the gradient of scale * loss if with_gradient. On a GPU rows may
/// be padded; the padding keeps its values. targets: [c] i64. Adds to sums in an order that does
/// not depend on threads. A row whose target is outside [-1, V) is ignored and remembered.
void cross_entropy(Context& context, void* sums, const TensorView& logits,
                   const TensorView& targets, float scale, bool with_gradient);
/// Waits for the context and returns the sums. Throws Error naming the first target outside the
/// vocabulary and its row.
CrossEntropyResult cross_entropy_result(Context& context, const void* sums);

namespace reference {
CrossEntropyResult cross_entropy(const TensorView& logits, const TensorView& targets, float scale,
                                 bool with_gradient);
}  // namespace reference

}  // namespace longnet
