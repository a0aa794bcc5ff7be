// CUDA LayerNorm and fill against the double reference: every mix of f32 and bf16 of the CPU twin's
// tests, teams of 8, 32 and 256 threads, packs of 1, 4 and 8.
#include "kernels/fill/fill.h"
#include "kernels/layer_norm/layer_norm.h"
#include "simt/device_values.h"
#include "simt/support.h"
#include "support/floats.h"

namespace longnet::simt_test {
namespace {

using test::difference;
using test::error_ratio;
using test::Floats;
using test::random_values;
using test::rounding_ratio;

struct Case {
  int64_t rows, groups, width;
  bool residual, strided, accumulate, in_place;
};
struct Types {
  DType x, sum, out;
};

TensorView shaped(TensorView view, const Case& c, int64_t gap) {
  view.rank = 3;
  view.shape = {c.rows, c.groups, c.width, 0};
  view.stride = {c.groups * c.width + gap, c.width, 1, 0};
  return view;
}
TensorView flat(std::vector<float>& values) {
  return TensorView(values.data(), DType::kF32, {static_cast<int64_t>(values.size())});
}

void check(const Case& c, const Types& types) {
  const int64_t gap = c.strided ? (c.width % 8 == 0 ? 8 : 5) : 0;
  const int64_t size = c.rows * (c.groups * c.width + gap), stats = c.rows * c.groups;
  Context context = gpu_context();
  std::vector<float> far = random_values(size, 1), weight = random_values(c.width, 3),
                     bias = random_values(c.width, 4);
  for (float& v : far) v += types.x == DType::kBF16 ? 3.0f : 30.0f;
  const std::vector<float> sevens(size, 7.0f);
  // Forward: reference on the host, twin on the device, from the same stored numbers.
  Floats x(types.x, far), residual(types.x, random_values(size, 2));
  Floats out(types.out, sevens), sum(types.sum, sevens);
  std::vector<float> mean(stats), rstd(stats);
  reference::layer_norm_forward(
      {.out = shaped(out.flat(), c, gap),
       .sum = c.residual ? shaped(sum.flat(), c, gap) : TensorView{},
       .mean = flat(mean),
       .rstd = flat(rstd),
       .x = shaped(x.flat(), c, gap),
       .residual = c.residual ? shaped(residual.flat(), c, gap) : TensorView{},
       .weight = flat(weight),
       .bias = flat(bias),
       .eps = 1e-5f});
  const DeviceValues d_x(types.x, far), d_residual(types.x, random_values(size, 2));
  const DeviceValues d_weight(DType::kF32, weight), d_bias(DType::kF32, bias);
  DeviceValues d_out(types.out, sevens), d_sum(types.sum, sevens), d_mean(DType::kF32, stats),
      d_rstd(DType::kF32, stats);
  layer_norm_forward(context,
                     {.out = shaped(d_out.flat(), c, gap),
                      .sum = c.residual ? shaped(d_sum.flat(), c, gap) : TensorView{},
                      .mean = d_mean.flat(),
                      .rstd = d_rstd.flat(),
                      .x = shaped(d_x.flat(), c, gap),
                      .residual = c.residual ? shaped(d_residual.flat(), c, gap) : TensorView{},
                      .weight = d_weight.flat(),
                      .bias = d_bias.flat(),
                      .eps = 1e-5f});
  context.wait();
  EXPECT_LE(rounding_ratio(types.out, d_out.floats(), out.floats(), c.width == 1 ? 10 : 2), 1);
  EXPECT_EQ(d_sum.floats(), sum.floats());
  EXPECT_LE(error_ratio(difference(d_mean.floats(), mean), 0, 1e-6), 1);
  EXPECT_LE(error_ratio(difference(d_rstd.floats(), rstd), 0, 2e-5), 1);

  // Backward from the reference's statistics.
  const DType input_type = c.residual ? types.sum : types.x;
  const DType grad_type = c.in_place ? types.out : types.sum;
  const std::vector<float> input_values = (c.residual ? sum : x).floats();
  Floats input(input_type, input_values), grad_out(types.out, random_values(size, 5));
  Floats grad(grad_type, random_values(size, c.in_place ? 5 : 6));
  std::vector<float> grad_weight = random_values(c.width, 7), grad_bias = random_values(c.width, 8);
  DeviceValues d_grad(grad_type, grad.floats());
  const DeviceValues d_grad_out(types.out, grad_out.floats()), d_input(input_type, input_values);
  const DeviceValues exact_mean(DType::kF32, mean), exact_rstd(DType::kF32, rstd);
  DeviceValues d_grad_weight(DType::kF32, grad_weight), d_grad_bias(DType::kF32, grad_bias);
  reference::layer_norm_backward({.grad_x = shaped(grad.flat(), c, gap),
                                  .grad_weight = flat(grad_weight),
                                  .grad_bias = flat(grad_bias),
                                  .grad_out = shaped(grad_out.flat(), c, gap),
                                  .x = shaped(input.flat(), c, gap),
                                  .mean = flat(mean),
                                  .rstd = flat(rstd),
                                  .weight = flat(weight),
                                  .accumulate = c.accumulate});
  const DeviceValues workspace(DType::kF32,
                               layer_norm_backward_workspace_bytes(context, c.width) / 4);
  layer_norm_backward(
      context,
      {.grad_x = shaped(d_grad.flat(), c, gap),
       .grad_weight = d_grad_weight.flat(),
       .grad_bias = d_grad_bias.flat(),
       .grad_out = c.in_place ? shaped(d_grad.flat(), c, gap) : shaped(d_grad_out.flat(), c, gap),
       .x = shaped(d_input.flat(), c, gap),
       .mean = exact_mean.flat(),
       .rstd = exact_rstd.flat(),
       .weight = d_weight.flat(),
       .accumulate = c.accumulate},
      workspace.data());
  context.wait();
  EXPECT_LE(rounding_ratio(grad_type, d_grad.floats(), grad.floats(), 2), 1);
  EXPECT_LE(error_ratio(difference(d_grad_weight.floats(), grad_weight), 0, 2e-5), 1);
  EXPECT_LE(error_ratio(difference(d_grad_bias.floats(), grad_bias), 0, 2e-5), 1);
}

const Case kCases[] = {
    {1, 1, 1, false, false, false, false},   {1, 1, 7, false, false, false, false},
    {5, 1, 33, true, false, true, false},    {64, 1, 192, true, false, false, false},
    {40, 1, 768, false, false, true, false}, {3, 1, 2500, true, false, true, false},
    {2, 1, 6999, true, false, false, false}, {37, 4, 16, false, true, false, true},
    {301, 6, 32, false, true, false, true},  {3, 1, 8, true, true, true, false},
    {700, 1, 24, false, false, false, false}};
const Types kTypes[] = {{DType::kF32, DType::kF32, DType::kF32},
                        {DType::kF32, DType::kF32, DType::kBF16},
                        {DType::kBF16, DType::kBF16, DType::kBF16},
                        {DType::kBF16, DType::kF32, DType::kF32}};

TEST(LayerNormSimt, AgreesWithReference) {
  int index = 0;
  for (const Case& c : kCases)
    for (const Types& types : kTypes) {
      SCOPED_TRACE(fmt::format("{} x {} x {}, {} {} {}", c.rows, c.groups, c.width,
                               dtype_name(types.x), dtype_name(types.sum), dtype_name(types.out)));
      ++index;
      simt::set_order(kOrders[index % 4], uint64_t(index));
      check(c, types);
    }
  simt::set_order(simt::Order::kAscending, 1);
}

TEST(LayerNormSimt, BlocksAddingToOnePlaceAreFound) {
  if (!simt::race_checked()) GTEST_SKIP() << "only in the race build";
  const std::string found = found_with_defect(30, [] {
    check({128, 1, 40, false, false, false, false}, kTypes[0]);
  });
  EXPECT_NE(found.find("race: write after write at"), std::string::npos) << found;
}

TEST(LayerNormSimt, MissingBarriersAreFound) {
  if (!simt::race_checked()) GTEST_SKIP() << "only in the race build";
  for (const int bug : {60, 61}) {
    const std::string found = found_with_defect(bug, [&] {
      check({9, 1, bug == 60 ? int64_t{1000} : int64_t{40}, false, false, false, false}, kTypes[0]);
    });
    EXPECT_NE(found.find("row_norm.h:"), std::string::npos) << bug << ": " << found;
  }
}

TEST(FillSimt, StridedRowsTailsAndTypes) {
  Context context = gpu_context();
  for (const auto& [rows, width, stride] : {std::array<int64_t, 3>{1, 1, 1},
                                            {3, 7, 10},
                                            {5, 8, 16},
                                            {4, 12, 12},
                                            {1, 3001, 3001},
                                            {2, 16, 24}})
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const int64_t size = (rows - 1) * stride + width;
      const DeviceValues values(dtype, std::vector<float>(size, 1.0f));
      TensorView view = values.flat();
      view.rank = 2;
      view.shape = {rows, width, 0, 0};
      view.stride = {stride, 1, 0, 0};
      fill(context, view, 2.50390625f);  // as bf16 a tie: to even
      context.wait();
      const std::vector<float> got = values.floats();
      const float want = dtype == DType::kF32 ? 2.50390625f : 2.5f;
      for (int64_t i = 0; i < size; ++i)
        ASSERT_EQ(got[i], i % stride < width ? want : 1.0f) << rows << " " << width << " " << i;
    }
}

TEST(FillSimt, WritesPastTheEndAreFound) {
  Context context = gpu_context();
  const simt::Defect defect(62);
  const DeviceValues values(DType::kF32, std::vector<float>(12, 1.0f));
  fill(context, values.flat().slice(0, 0, 4), 2.0f);  // lands one pack further
  EXPECT_EQ(values.floats()[0], 1.0f);
}

}  // namespace
}  // namespace longnet::simt_test
