// CUDA cast against the reference: borders of rounding, tails, addresses without alignment.
#include <cstring>
#include <limits>

#include "kernels/cast/cast.h"
#include "simt/device_values.h"
#include "simt/support.h"
#include "support/floats.h"

namespace longnet::simt_test {
namespace {

/// Places where a cast of n numbers from element `offset` on differs from the reference; NaN counts
/// as equal to NaN.
int64_t wrong(int64_t n, int64_t offset, DType in_type, DType out_type) {
  std::vector<float> values(n + offset);
  std::mt19937 random(1);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t low[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    const uint32_t bits = static_cast<uint32_t>(random()) << 16 | low[i % 6];
    std::memcpy(&values[i], &bits, 4);
  }
  test::Floats in(in_type, values), out(out_type, std::vector<float>(n + offset, 3.0f));
  reference::cast(out.flat().slice(0, offset, n), in.flat().slice(0, offset, n));
  Context context = gpu_context();
  const DeviceValues d_in(in_type, values), d_out(out_type, std::vector<float>(n + offset, 3.0f));
  cast(context, d_out.flat().slice(0, offset, n), d_in.flat().slice(0, offset, n));
  context.wait();
  const std::vector<float> got = d_out.floats(), want = out.floats();
  int64_t count = 0;
  for (size_t i = 0; i < got.size(); ++i)
    count += std::isnan(want[i]) ? !std::isnan(got[i]) : std::memcmp(&got[i], &want[i], 4) != 0;
  return count;
}

TEST(CastSimt, AgreesWithReferenceBitByBit) {
  for (const int64_t n : {1, 3, 4, 8, 1000, 20003})
    for (const int64_t offset : {0, 1, 4})
      for (const DType in : {DType::kF32, DType::kBF16})
        for (const DType out : {DType::kF32, DType::kBF16})
          EXPECT_EQ(wrong(n, offset, in, out), 0)
              << n << " from " << offset << " " << dtype_name(in) << " " << dtype_name(out);
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
