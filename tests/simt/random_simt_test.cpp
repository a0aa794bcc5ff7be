// Random numbers in GPU memory are the bits of the CPU's.
#include "kernels/random/random.h"
#include "simt/device_values.h"
#include "simt/support.h"

namespace longnet::simt_test {
namespace {

TEST(RandomSimt, SameBitsAsOnTheCpu) {
  for (const int64_t n : {int64_t{1}, int64_t{1001}, (int64_t{4} << 20) + 3}) {  // beyond one piece
    std::vector<float> normal(n), uniform(n);
    Context host, context = gpu_context();
    fill_normal(host, TensorView(normal.data(), DType::kF32, {n}), 5, "a", 2.0);
    fill_uniform(host, TensorView(uniform.data(), DType::kF32, {n}), 5, "b", 0.5);
    const DeviceValues values(DType::kF32, n);
    fill_normal(context, values.flat(), 5, "a", 2.0);
    EXPECT_EQ(values.floats(), normal);
    fill_uniform(context, values.flat(), 5, "b", 0.5);
    EXPECT_EQ(values.floats(), uniform);
  }
}

}  // namespace
}  // namespace longnet::simt_test
