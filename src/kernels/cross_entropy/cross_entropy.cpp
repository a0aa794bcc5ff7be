// Dispatcher of cross_entropy.h: checks, then the twin of the device; begin and result, which only
// move a few bytes.
#include "kernels/cross_entropy/cross_entropy.h"

#include <cstring>

#include "kernels/cross_entropy/cross_entropy_cpu.h"
#include "kernels/cross_entropy/cross_entropy_cuda.h"

namespace longnet {

int64_t cross_entropy_sums_bytes(const Context& context, int64_t max_rows) {
  if (context.device().type == DeviceType::kCUDA) return cuda::cross_entropy_sums_bytes(max_rows);
  return sizeof(CrossEntropySums);
}

void cross_entropy_begin(Context& context, void* sums) {
  if (context.counting()) return;
  LN_CHECK(sums != nullptr, "no memory for sums");
  if (context.device().type == DeviceType::kCUDA) return cuda::cross_entropy_begin(context, sums);
  *static_cast<CrossEntropySums*>(sums) = {0, 0, 0, -1, 0};
}

void cross_entropy(Context& context, void* sums, const TensorView& logits,
                   const TensorView& targets, float scale, bool with_gradient) {
  LN_CHECK(logits.rank == 2 && targets.contiguous() && targets.elements() == logits.shape[0],
           "logits {}, targets {}", logits.describe(), targets.describe());
  // On a GPU rows may lie apart.
  const bool rows_apart = (logits.stride[1] == 1 || logits.shape[1] <= 1) &&
                          (logits.shape[0] <= 1 || logits.stride[0] >= logits.shape[1]);
  LN_CHECK(logits.contiguous() || (context.on_gpu() && rows_apart),
           "logits {}: rows {} elements apart", logits.describe(), logits.stride[0]);
  if (logits.dtype != DType::kF32)
    throw Error("logits are {}: the loss takes f32 in this version; set run.dtype=f32",
                dtype_name(logits.dtype));
  if (context.counting() || logits.shape[0] == 0) return;
  LN_CHECK(sums != nullptr, "no memory for sums");
  if (context.device().type == DeviceType::kCUDA)
    return cuda::cross_entropy(context, sums, logits, targets, scale, with_gradient);
  cpu::cross_entropy(context, static_cast<CrossEntropySums*>(sums), logits, targets, scale,
                     with_gradient);
}

CrossEntropyResult cross_entropy_result(Context& context, const void* sums) {
  if (context.counting()) return {};
  CrossEntropySums total{};
  if (context.device().type == DeviceType::kCUDA) {
    context.wait();  // with progress: the copy would not hear of a collective that fails
    device_runtime::copy_to_host(&total, sums, sizeof total, context.stream());
    context.wait();
  } else {
    total = *static_cast<const CrossEntropySums*>(sums);
  }
  if (total.bad_row >= 0)
    throw Error(
        "target {} in row {} is outside the vocabulary; allowed: -1 (ignored) and 0 to V - 1"
        " (model.vocab_size)",
        total.bad_target, total.bad_row);
  return {total.nats, total.count};
}

}  // namespace longnet
