// Dispatcher of fill.h: checks, then the twin of the device.
#include "kernels/fill/fill.h"

#include "core/bf16.h"
#include "kernels/fill/fill_cpu.h"
#include "kernels/fill/fill_cuda.h"

namespace longnet {

void fill(Context& context, const TensorView& values, float value) {
  if (context.counting() || values.elements() == 0) return;
  const int last = values.rank - 1;
  LN_CHECK(last >= 0 && values.stride[last] == 1, "fill needs a contiguous last axis, got {}",
           values.describe());
  LN_CHECK(is_float_type(values.dtype), "fill of {}: allowed are f32 and bf16", values.describe());
  if (context.device().type == DeviceType::kCUDA) return cuda::fill(context, values, value);
  cpu::fill(values, value);
}

}  // namespace longnet
