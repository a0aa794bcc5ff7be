// DeviceValues: the numbers of a tensor in GPU memory, f32, bf16 or i64; and the Context of that
// GPU. They use device_runtime.h only, so the same test runs on a GPU and, under the emulator
// (device_runtime_emulated.cpp), on none. Memory has exactly the bytes asked for.
#pragma once

#include <memory>
#include <vector>

#include "core/bf16.h"
#include "core/context.h"
#include "core/device_runtime.h"
#include "support/floats.h"

namespace longnet::simt_test {

inline constexpr Device kGpu{DeviceType::kCUDA, 0};

inline Context gpu_context() { return Context({.device = kGpu, .threads = 1, .counting = false}); }

class DeviceValues {
 public:
  /// n numbers, each NaN (i64: -1): nothing may be read before it is written.
  DeviceValues(DType dtype, int64_t n) : DeviceValues(n, dtype) {
    on_stream([&](auto stream) { device_runtime::fill_bytes(data_.get(), 0xff, bytes(), stream); });
  }
  /// These numbers, rounded if dtype is bf16.
  DeviceValues(DType dtype, const std::vector<float>& values)
      : DeviceValues(static_cast<int64_t>(values.size()), dtype) {
    upload(test::Floats(dtype, values).flat().data);
  }
  explicit DeviceValues(const std::vector<int64_t>& values)
      : DeviceValues(static_cast<int64_t>(values.size()), DType::kI64) {
    upload(values.data());
  }

  /// Contiguous; set .stride of the result for others.
  TensorView view(std::initializer_list<int64_t> shape) const {
    return TensorView(data_.get(), dtype_, shape, kGpu);
  }
  TensorView flat() const { return view({n_}); }
  void* data() const { return data_.get(); }

  /// The numbers now. Read on a stream of its own, which other streams are not ordered with: wait()
  /// for the Context that writes them first.
  std::vector<float> floats() const {
    std::vector<float> values(n_);
    if (dtype_ == DType::kF32) {
      download(values.data());
    } else {
      std::vector<bf16> rounded(n_);
      download(rounded.data());
      for (int64_t i = 0; i < n_; ++i) values[i] = to_float(rounded[i]);
    }
    return values;
  }
  std::vector<int64_t> integers() const {
    std::vector<int64_t> values(n_);
    download(values.data());
    return values;
  }

 private:
  DeviceValues(int64_t n, DType dtype) : dtype_(dtype), n_(n) {
    device_runtime::select(kGpu);
    if (n > 0) data_.reset(device_runtime::allocate(n * dtype_size(dtype)));
    LN_CHECK(n == 0 || data_ != nullptr, "no GPU memory for {} elements", n);
  }
  int64_t bytes() const { return n_ * dtype_size(dtype_); }
  /// Starts work on a stream of its own and waits for it.
  template <typename Work>
  void on_stream(Work work) const {
    if (n_ == 0) return;
    device_runtime::OwnedStream stream(device_runtime::make_stream());
    work(stream.get());
    device_runtime::wait(stream.get());
  }
  void upload(const void* from) {
    on_stream(
        [&](auto stream) { device_runtime::copy_to_device(data_.get(), from, bytes(), stream); });
  }
  void download(void* to) const {
    on_stream([&](auto stream) { device_runtime::copy_to_host(to, data_.get(), bytes(), stream); });
  }
  struct Free {
    void operator()(void* data) const noexcept { device_runtime::free(data); }
  };
  DType dtype_;
  int64_t n_;
  std::unique_ptr<void, Free> data_;
};

}  // namespace longnet::simt_test
