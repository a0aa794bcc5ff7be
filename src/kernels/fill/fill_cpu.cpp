// CPU twin of fill: contiguous runs, as long as the strides allow, are divided among threads.
#include "kernels/fill/fill_cpu.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/bf16.h"

namespace longnet::cpu {
namespace {

constexpr int64_t kPieceElements = 64 * 1024;  // 256 KiB: one thread's turn in a long run

void fill_run(float* out, int64_t count, float value) {
  if (std::bit_cast<uint32_t>(value) == 0)
    std::memset(out, 0,
                static_cast<size_t>(count) * sizeof(float));  // need not read the lines first
  else
    std::fill_n(out, count, value);
}
void fill_run(bf16* out, int64_t count, bf16 value) { std::fill_n(out, count, value); }

template <typename T>
void fill_all(const TensorView& values, T value) {
  int last = values.rank - 1;
  int64_t width = values.shape[last];
  for (; last > 0 && values.stride[last - 1] == width; --last) width *= values.shape[last - 1];
  const int64_t rows = values.elements() / width;
  const int64_t pieces = (width + kPieceElements - 1) / kPieceElements;
  T* base = values.as<T>();
#pragma omp parallel for schedule(static) if (rows * width > kPieceElements)
  for (int64_t item = 0; item < rows * pieces; ++item) {
    int64_t rest = item / pieces, offset = item % pieces * kPieceElements;
    const int64_t count = std::min(kPieceElements, width - offset);
    for (int axis = last - 1; axis >= 0; --axis) {
      offset += rest % values.shape[axis] * values.stride[axis];
      rest /= values.shape[axis];
    }
    fill_run(base + offset, count, value);
  }
}

}  // namespace

void fill(const TensorView& values, float value) {
  if (values.dtype == DType::kBF16)
    fill_all(values, to_bf16(value));
  else
    fill_all(values, value);
}

}  // namespace longnet::cpu
