// TensorView: a typed, strided view of memory that another object (an Arena) owns.
//
// Legend of shapes, used in the whole tree: B sequences in a batch, N tokens of a whole sequence, L
// tokens of it on one rank, T = B L, H heads, D head dimension, C = H D, F feed-forward width,
// V vocabulary. Strides are in elements. It does not own, copy or convert anything.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/error.h"

namespace longnet {

enum class DType : uint8_t { kF32, kBF16, kI64 };
enum class DeviceType : uint8_t { kCPU, kCUDA };

struct Device {
  DeviceType type = DeviceType::kCPU;
  int index = 0;  // which GPU of the node; 0 on CPU
  bool operator==(const Device&) const = default;
};

std::string device_name(Device device);  // "cpu", "cuda:0"

/// bfloat16 as stored: the upper half of an IEEE float32.
struct bf16 {
  uint16_t bits;
};

inline int64_t dtype_size(DType dtype) {
  return dtype == DType::kF32 ? 4 : dtype == DType::kBF16 ? 2 : 8;
}
const char* dtype_name(DType dtype);  // "f32", "bf16", "i64"
/// "f32" or "bf16" (run.dtype); throws Error for another word.
DType float_type(const std::string& name);

template <typename T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct dtype_of<bf16> {
  static constexpr DType value = DType::kBF16;
};
template <>
struct dtype_of<int64_t> {
  static constexpr DType value = DType::kI64;
};

/// Rows of a matrix begin on this boundary in every arena (bytes).
inline constexpr int64_t kAlignment = 256;

struct TensorView {
  static constexpr int kMaxRank = 4;

  void* data = nullptr;  // null: not set, where an argument is optional
  DType dtype = DType::kF32;
  Device device;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> stride{};  // elements

  TensorView() = default;
  /// Contiguous (row-major) view. Throws Error for more than 2^63 bytes.
  TensorView(void* data, DType dtype, std::initializer_list<int64_t> shape, Device device = {});

  bool defined() const { return data != nullptr; }
  int64_t elements() const;
  int64_t bytes() const { return elements() * dtype_size(dtype); }
  bool contiguous() const;

  /// Pointer to the first element; checks the type and that the memory is the CPU's.
  template <typename T>
  T* as() const {
    LN_CHECK(dtype == dtype_of<T>::value, "tensor is {}, wanted {}", dtype_name(dtype),
             dtype_name(dtype_of<T>::value));
    LN_CHECK(device.type == DeviceType::kCPU, "tensor is not in host memory");
    return static_cast<T*>(data);
  }
  float* f32() const { return as<float>(); }
  /// As as(), for GPU memory: an address for kernels and the device runtime, not for the host.
  template <typename T>
  T* on_gpu() const {
    LN_CHECK(dtype == dtype_of<T>::value, "tensor is {}, wanted {}", dtype_name(dtype),
             dtype_name(dtype_of<T>::value));
    LN_CHECK(device.type == DeviceType::kCUDA, "tensor is not in GPU memory");
    return static_cast<T*>(data);
  }

  /// Same memory, another shape; needs a contiguous view and equal element counts.
  TensorView view(std::initializer_list<int64_t> new_shape) const;
  /// Elements [begin, begin + length) of one axis.
  TensorView slice(int axis, int64_t begin, int64_t length) const;
  std::string describe() const;  // "f32[2, 64, 4, 16]" for messages
};

}  // namespace longnet
