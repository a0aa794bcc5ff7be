// CPU twin of fill: one memset-like loop per row, rows divided among threads.
#include <algorithm>

#include "kernels/fill/fill.h"

namespace longnet {

void fill(Context& context, const TensorView& values, float value) {
  if (context.counting() || values.elements() == 0) return;
  LN_CHECK(values.rank >= 1 && values.stride[values.rank - 1] == 1,
           "fill needs a contiguous last axis, got {}", values.describe());
  const int last = values.rank - 1;
  const int64_t width = values.shape[last];
  const int64_t rows = values.elements() / width;
  float* base = values.f32();
#pragma omp parallel for schedule(static) if (rows * width > 65536)
  for (int64_t row = 0; row < rows; ++row) {
    int64_t rest = row, offset = 0;
    for (int axis = last - 1; axis >= 0; --axis) {
      offset += rest % values.shape[axis] * values.stride[axis];
      rest /= values.shape[axis];
    }
    std::fill_n(base + offset, width, value);
  }
}

}  // namespace longnet
