// See tensor.h.
#include "core/tensor.h"

#include "core/byte_count.h"

namespace longnet {

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kI64:
      return "i64";
  }
  return "?";
}

std::string device_name(Device device) {
  return device.type == DeviceType::kCPU ? "cpu" : fmt::format("cuda:{}", device.index);
}

DType float_type(const std::string& name) {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    if (name == dtype_name(dtype)) return dtype;
  throw Error("number type {}; allowed: f32, bf16", name);
}

TensorView::TensorView(void* data_in, DType dtype_in, std::initializer_list<int64_t> shape_in,
                       Device device_in)
    : data(data_in), dtype(dtype_in), device(device_in), rank(static_cast<int>(shape_in.size())) {
  LN_CHECK(rank <= kMaxRank, "rank {} is above {}", rank, kMaxRank);
  int axis = 0;
  for (int64_t extent : shape_in) {
    LN_CHECK(extent >= 0, "extent {} of axis {} is negative", extent, axis);
    shape[axis++] = extent;
  }
  int64_t step = 1, bytes = 0;
  bool fits = true;
  for (axis = rank - 1; axis >= 0; --axis) {
    stride[axis] = step;
    fits = !__builtin_mul_overflow(step, shape[axis], &step) && fits;
  }
  if (!fits || __builtin_mul_overflow(step, dtype_size(dtype), &bytes))
    throw_beyond_64_bits("a tensor " + describe());
}

int64_t TensorView::elements() const {
  int64_t count = rank == 0 ? 0 : 1;
  for (int axis = 0; axis < rank; ++axis) count *= shape[axis];
  return count;
}

bool TensorView::contiguous() const {
  int64_t step = 1;
  for (int axis = rank - 1; axis >= 0; --axis) {
    if (shape[axis] != 1 && stride[axis] != step) return false;
    step *= shape[axis];
  }
  return true;
}

TensorView TensorView::view(std::initializer_list<int64_t> new_shape) const {
  LN_CHECK(contiguous(), "cannot reshape the strided {}", describe());
  TensorView result(data, dtype, new_shape, device);
  LN_CHECK(result.elements() == elements(), "{} does not reshape to {}", describe(),
           result.describe());
  return result;
}

TensorView TensorView::slice(int axis, int64_t begin, int64_t length) const {
  LN_CHECK(axis >= 0 && axis < rank && begin >= 0 && length >= 0 && begin + length <= shape[axis],
           "slice [{}, {}) of axis {} of {}", begin, begin + length, axis, describe());
  TensorView result = *this;
  result.data = static_cast<char*>(data) + begin * stride[axis] * dtype_size(dtype);
  result.shape[axis] = length;
  return result;
}

std::string TensorView::describe() const {
  std::string text = dtype_name(dtype);
  text += "[";
  for (int axis = 0; axis < rank; ++axis) {
    if (axis) text += ", ";
    text += std::to_string(shape[axis]);
  }
  return text + "]";
}

}  // namespace longnet
