// Dispatcher of cast.h: checks, then the twin of the device.
#include "kernels/cast/cast.h"

#include "core/bf16.h"
#include "kernels/cast/cast_cpu.h"
#include "kernels/cast/cast_cuda.h"

namespace longnet {

void cast(Context& context, const TensorView& out, const TensorView& in) {
  LN_CHECK(is_float_type(out.dtype) && is_float_type(in.dtype), "cast of {} to {}", in.describe(),
           out.describe());
  LN_CHECK(out.elements() == in.elements() && out.contiguous() && in.contiguous(),
           "cast of {} to {}: wanted contiguous tensors of equal size", in.describe(),
           out.describe());
  if (context.counting() || in.elements() == 0) return;
  if (context.device().type == DeviceType::kCUDA) return cuda::cast(context, out, in);
  cpu::cast(context, out, in);
}

}  // namespace longnet
