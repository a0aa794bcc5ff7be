// Softmax cross entropy of one chunk of tokens; the model calls it chunk by chunk, so that logits
// of all N tokens never exist at once.
//
//   loss_t = log(sum_v exp(logits_tv)) - logits_t,target;  grad_tv = (softmax_tv - [v = target])
//   scale
// Targets of -1 are ignored: no loss, zero gradient. A target outside [-1, V) throws.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet {

struct CrossEntropyResult {
  double loss_sum = 0;  // nats, over the targets that count
  int64_t count = 0;    // targets that count
};

/// logits: [c, V], replaced by the gradient of scale * loss_sum if with_gradient. targets: [c] i64.
CrossEntropyResult cross_entropy(Context& context, const TensorView& logits,
                                 const TensorView& targets, float scale, bool with_gradient);

namespace reference {
CrossEntropyResult cross_entropy(const TensorView& logits, const TensorView& targets, float scale,
                                 bool with_gradient);
}  // namespace reference

}  // namespace longnet
