// TensorView: shapes, strides, slices, and the checks that guard a pointer.
#include "core/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace longnet {
namespace {

TEST(Tensor, ContiguousStrides) {
  std::vector<float> memory(2 * 3 * 4 * 5);
  const TensorView t(memory.data(), DType::kF32, {2, 3, 4, 5});
  EXPECT_EQ(t.rank, 4);
  EXPECT_EQ(t.shape, (std::array<int64_t, 4>{2, 3, 4, 5}));
  EXPECT_EQ(t.stride, (std::array<int64_t, 4>{60, 20, 5, 1}));
  EXPECT_EQ(t.elements(), 120);
  EXPECT_EQ(t.bytes(), 480);
  EXPECT_TRUE(t.contiguous());
  EXPECT_TRUE(t.defined());
  EXPECT_EQ(t.describe(), "f32[2, 3, 4, 5]");
}

TEST(Tensor, SizesOfTypes) {
  EXPECT_EQ(TensorView(nullptr, DType::kBF16, {7}).bytes(), 14);
  EXPECT_EQ(TensorView(nullptr, DType::kI64, {7}).bytes(), 56);
  EXPECT_STREQ(dtype_name(DType::kF32), "f32");
  EXPECT_STREQ(dtype_name(DType::kBF16), "bf16");
  EXPECT_STREQ(dtype_name(DType::kI64), "i64");
}

TEST(Tensor, NothingIsEmpty) {
  const TensorView none;
  EXPECT_FALSE(none.defined());
  EXPECT_EQ(none.elements(), 0);
  EXPECT_EQ(none.bytes(), 0);
  EXPECT_EQ(TensorView(nullptr, DType::kF32, {3, 0, 4}).elements(), 0);
}

TEST(Tensor, MoreThanAnAddressSpaceIsAnError) {
  constexpr int64_t k32 = int64_t{1} << 32;
  const auto message = [](std::initializer_list<int64_t> shape) -> std::string {
    try {
      const TensorView view(nullptr, DType::kF32, shape);
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  };
  EXPECT_EQ(message({k32 / 4, k32 / 4}), "");  // 2^62 bytes
  EXPECT_THAT(message({k32 / 4, k32 / 2}), testing::HasSubstr("more than 2^63 bytes"));
  EXPECT_THAT(message({k32, k32, k32}),
              testing::HasSubstr("f32[4294967296, 4294967296, 4294967296]"));
}

TEST(Tensor, CountsBeyond32Bits) {
  const TensorView t(nullptr, DType::kF32, {1 << 20, 1 << 12});  // 2^32 elements
  EXPECT_EQ(t.elements(), int64_t{1} << 32);
  EXPECT_EQ(t.bytes(), int64_t{1} << 34);
  const TensorView last = t.slice(0, (1 << 20) - 1, 1);
  EXPECT_EQ(static_cast<char*>(last.data) - static_cast<char*>(t.data),
            ((int64_t{1} << 32) - (1 << 12)) * 4);
}

TEST(Tensor, SliceMovesThePointerAndKeepsStrides) {
  std::vector<float> memory(4 * 6);
  std::iota(memory.begin(), memory.end(), 0.0f);
  const TensorView t(memory.data(), DType::kF32, {4, 6});
  const TensorView rows = t.slice(0, 1, 2);
  EXPECT_EQ(rows.f32()[0], 6);
  EXPECT_TRUE(rows.contiguous());
  const TensorView columns = t.slice(1, 2, 3);
  EXPECT_EQ(columns.f32()[0], 2);
  EXPECT_EQ(columns.f32()[columns.stride[0]], 8);
  EXPECT_EQ(columns.shape[1], 3);
  EXPECT_FALSE(columns.contiguous());
  EXPECT_THROW(columns.view({12}), Error);
  EXPECT_TRUE(columns.slice(0, 2, 1).contiguous()) << "the stride of an extent of 1 is free";
  EXPECT_EQ(t.slice(0, 4, 0).elements(), 0);
  EXPECT_THROW(t.slice(0, 3, 2), Error);
  EXPECT_THROW(t.slice(2, 0, 1), Error);
  EXPECT_THROW(t.slice(0, -1, 1), Error);
  EXPECT_THROW(t.slice(-1, 0, 1), Error);
}

TEST(Tensor, ViewKeepsTheElements) {
  std::vector<int64_t> memory(24);
  const TensorView t(memory.data(), DType::kI64, {2, 3, 4});
  const TensorView flat = t.view({6, 4});
  EXPECT_EQ(flat.data, t.data);
  EXPECT_EQ(flat.stride[0], 4);
  EXPECT_EQ(flat.dtype, DType::kI64);
  EXPECT_THROW(t.view({5, 5}), Error);
}

TEST(Tensor, WrongAccessIsAnError) {
  std::vector<int64_t> memory(4);
  const TensorView t(memory.data(), DType::kI64, {4});
  EXPECT_EQ(t.as<int64_t>(), memory.data());
  EXPECT_THROW(t.f32(), Error);
  const TensorView remote(memory.data(), DType::kF32, {4}, Device{DeviceType::kCUDA, 0});
  EXPECT_THROW(remote.f32(), Error);
  EXPECT_THROW(TensorView(nullptr, DType::kF32, {1, 2, 3, 4, 5}), Error);
  EXPECT_THROW(TensorView(nullptr, DType::kF32, {-1}), Error);
}

TEST(Tensor, CheckSaysConditionPlaceAndValues) {
  const TensorView t(nullptr, DType::kF32, {2});
  try {
    t.slice(0, 1, 2);
    FAIL();
  } catch (const Error& e) {
    const std::string message = e.what();
    EXPECT_EQ(message.rfind("internal error: slice [1, 3) of axis 0 of f32[2] (", 0), 0u)
        << message;
    EXPECT_NE(message.find(" at src/core/tensor.cpp:"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace longnet
