// CUDA cast against the reference: borders of rounding, tails, addresses without alignment, room
// between rows.
#include <cstring>
#include <limits>

#include "kernels/cast/cast.h"
#include "simt/device_values.h"
#include "simt/support.h"
#include "support/floats.h"

namespace longnet::simt_test {
namespace {

std::vector<float> bits_around_borders(int64_t n) {
  std::vector<float> values(n);
  std::mt19937 random(1);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t low[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    const uint32_t bits = static_cast<uint32_t>(random()) << 16 | low[i % 6];
    std::memcpy(&values[i], &bits, 4);
  }
  return values;
}

/// NaN counts as equal to NaN.
int64_t different(const std::vector<float>& got, const std::vector<float>& want) {
  int64_t count = 0;
  for (size_t i = 0; i < got.size(); ++i)
    count += std::isnan(want[i]) ? !std::isnan(got[i]) : std::memcmp(&got[i], &want[i], 4) != 0;
  return count;
}

/// Places where a cast of n numbers from element `offset` on differs from the reference.
int64_t wrong(int64_t n, int64_t offset, DType in_type, DType out_type) {
  const std::vector<float> values = bits_around_borders(n + offset);
  test::Floats in(in_type, values), out(out_type, std::vector<float>(n + offset, 3.0f));
  reference::cast(out.flat().slice(0, offset, n), in.flat().slice(0, offset, n));
  Context context = gpu_context();
  const DeviceValues d_in(in_type, values), d_out(out_type, std::vector<float>(n + offset, 3.0f));
  cast(context, d_out.flat().slice(0, offset, n), d_in.flat().slice(0, offset, n));
  context.wait();
  return different(d_out.floats(), out.floats());
}

/// The same of a matrix whose rows lie further apart; what is between them is compared too.
int64_t wrong_rows(int64_t rows, int64_t width, int64_t in_stride, int64_t out_stride,
                   DType in_type, DType out_type) {
  // Nothing behind the last row.
  const std::vector<float> values = bits_around_borders((rows - 1) * in_stride + width);
  const std::vector<float> before((rows - 1) * out_stride + width, 3.0f);
  const auto matrix = [&](TensorView view, int64_t stride) {
    view.rank = 2;
    view.shape = {rows, width, 0, 0};
    view.stride = {stride, 1, 0, 0};
    return view;
  };
  test::Floats in(in_type, values), out(out_type, before);
  for (int64_t row = 0; row < rows; ++row)
    reference::cast(out.flat().slice(0, row * out_stride, width),
                    in.flat().slice(0, row * in_stride, width));
  Context context = gpu_context();
  const DeviceValues d_in(in_type, values), d_out(out_type, before);
  cast(context, matrix(d_out.flat(), out_stride), matrix(d_in.flat(), in_stride));
  context.wait();
  return different(d_out.floats(), out.floats());
}

TEST(CastSimt, AgreesWithReferenceBitByBit) {
  for (const int64_t n : {1, 3, 4, 8, 1000, 20003})
    for (const int64_t offset : {0, 1, 4})
      for (const DType in : {DType::kF32, DType::kBF16})
        for (const DType out : {DType::kF32, DType::kBF16})
          EXPECT_EQ(wrong(n, offset, in, out), 0)
              << n << " from " << offset << " " << dtype_name(in) << " " << dtype_name(out);
}

TEST(CastSimt, RowsApartAgreeWithReferenceBitByBit) {
  struct Case {
    int64_t rows, width, in_stride, out_stride;
  };
  for (const Case& c : {Case{5, 1003, 1024, 1024},
                        {3, 7, 8, 16},
                        {4, 3, 64, 64},
                        {6, 129, 133, 130},
                        {3, 16, 16, 24},
                        {1, 37, 64, 40},
                        {2, 5001, 5056, 5001},
                        {1027, 1, 2, 3}})
    for (const DType in : {DType::kF32, DType::kBF16})
      for (const DType out : {DType::kF32, DType::kBF16})
        EXPECT_EQ(wrong_rows(c.rows, c.width, c.in_stride, c.out_stride, in, out), 0)
            << c.rows << " x " << c.width << " " << dtype_name(in) << " " << dtype_name(out);
}

TEST(CastSimt, OtherShapesWithGapsAreRefused) {
  Context context = gpu_context();
  const DeviceValues in(DType::kF32, 64), out(DType::kBF16, 64);
  const TensorView wide = in.view({4, 16}).slice(1, 0, 8);
  EXPECT_NO_THROW(cast(context, out.view({4, 8}), wide));
  EXPECT_THROW(cast(context, out.view({8, 4}), wide), Error);
  EXPECT_THROW(cast(context, out.view({4, 8}), in.view({4, 16}).slice(1, 0, 7)), Error);
  TensorView inside = in.view({4, 8});
  inside.stride[0] = 7;
  EXPECT_THROW(cast(context, out.view({4, 8}), inside), Error);
  inside.stride = {16, 2, 0, 0};
  EXPECT_THROW(cast(context, out.view({4, 8}), inside), Error);
}

TEST(CastSimt, SecondPackPastTheEndIsFound) {
  if (!simt::address_checked()) GTEST_SKIP() << "only in the ASan build";
  EXPECT_DEATH(
      {
        const simt::Defect defect(63);
        wrong(1000, 0, DType::kF32, DType::kBF16);
      },
      "heap-buffer-overflow");
}

}  // namespace
}  // namespace longnet::simt_test
