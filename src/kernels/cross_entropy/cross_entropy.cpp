// Dispatcher of cross_entropy.h: checks, then the CPU twin.
#include "kernels/cross_entropy/cross_entropy.h"

#include "kernels/cross_entropy/cross_entropy_cpu.h"

namespace longnet {

CrossEntropyResult cross_entropy(Context& context, const TensorView& logits,
                                 const TensorView& targets, float scale, bool with_gradient) {
  LN_CHECK(logits.rank == 2 && logits.contiguous() && targets.contiguous() &&
               targets.elements() == logits.shape[0],
           "logits {}, targets {}", logits.describe(), targets.describe());
  if (logits.dtype != DType::kF32)
    throw Error("logits are {}: the loss takes f32 in this version; set run.dtype=f32",
                dtype_name(logits.dtype));
  // Counted targets scale nothing when nothing runs; every target is taken as one that counts.
  if (context.counting()) return {0.0, logits.shape[0]};
  if (logits.shape[0] == 0) return {};
  const int64_t* target = targets.as<int64_t>();
  for (int64_t t = 0; t < logits.shape[0]; ++t)
    if (target[t] < -1 || target[t] >= logits.shape[1])
      throw Error(
          "target {} in row {} is outside the vocabulary; allowed: -1 (ignored) and 0 to {}",
          target[t], t, logits.shape[1] - 1);
  return cpu::cross_entropy(context, logits, targets, scale, with_gradient);
}

}  // namespace longnet
