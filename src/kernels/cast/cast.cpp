// Dispatcher of cast.h: checks, then the twin of the device.
#include "kernels/cast/cast.h"

#include "core/bf16.h"
#include "kernels/cast/cast_cpu.h"
#include "kernels/cast/cast_cuda.h"

namespace longnet {
namespace {

/// Matrices of one shape, of which rows may lie apart.
bool equal_matrices(const TensorView& a, const TensorView& b) {
  const auto rows_in_place = [](const TensorView& v) {
    return v.rank == 2 && (v.stride[1] == 1 || v.shape[1] <= 1) &&
           (v.shape[0] <= 1 || v.stride[0] >= v.shape[1]);
  };
  return rows_in_place(a) && rows_in_place(b) && a.shape == b.shape;
}

}  // namespace

void cast(Context& context, const TensorView& out, const TensorView& in) {
  LN_CHECK(is_float_type(out.dtype) && is_float_type(in.dtype), "cast of {} to {}", in.describe(),
           out.describe());
  LN_CHECK((out.elements() == in.elements() && out.contiguous() && in.contiguous()) ||
               (context.on_gpu() && equal_matrices(out, in)),
           "cast of {} to {}: wanted contiguous tensors of equal size{}", in.describe(),
           out.describe(), context.on_gpu() ? " or matrices of equal shape" : "");
  if (context.counting() || in.elements() == 0) return;
  if (context.device().type == DeviceType::kCUDA) return cuda::cast(context, out, in);
  cpu::cast(context, out, in);
}

}  // namespace longnet
