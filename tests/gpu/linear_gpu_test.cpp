// Linear layers through cuBLASLt against the double reference: shapes of the CPU twin's tests and
// of a model, strided rows, f32 and bf16; the whole library workspace and a
// small one.
#include "kernels/linear/linear.h"
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
  int64_t t, o, i, gap;
  bool bias, accumulate;
};
// cuBLASLt wants rows of 16 bytes for its best methods; odd widths take others.
const Case kCases[] = {{0, 5, 4, 0, true, false},      {1, 1, 1, 0, true, false},
                       {1, 33, 7, 3, false, true},     {5, 7, 33, 0, true, true},
                       {130, 192, 64, 0, true, false}, {257, 96, 104, 16, true, false},
                       {700, 31, 48, 5, true, true},   {300, 2304, 768, 0, true, false},
                       {70, 4101, 64, 59, false, true}};

void check(const Case& c, DType operands, DType result, int64_t workspace_bytes) {
  SCOPED_TRACE(fmt::format("{} x {} x {} + {} {} -> {}, workspace {}", c.t, c.o, c.i, c.gap,
                           dtype_name(operands), dtype_name(result), workspace_bytes));
  const auto matrix = [](TensorView flat, int64_t rows, int64_t columns, int64_t gap) {
    flat.rank = 2;
    flat.shape = {rows, columns, 0, 0};
    flat.stride = {columns + gap, 1, 0, 0};
    return flat;
  };
  const int64_t x_size = c.t * (c.i + c.gap) + 8, out_size = c.t * (c.o + c.gap) + 8;
  const std::vector<float> x = random_values(x_size, 1), weight = random_values(c.o * c.i, 2),
                           bias = random_values(c.o, 3), grad_out = random_values(out_size, 4),
                           out = random_values(out_size, 5), grad_x = random_values(x_size, 6),
                           grad_weight = random_values(c.o * c.i, 7),
                           grad_bias = random_values(c.o, 8);
  const auto run = [&](auto& ops, auto& o, auto& gx, auto& gw, auto& gb, auto& forward,
                       auto& backward_input, auto& backward_weight) {
    auto& [vx, vw, vb, vg] = ops;
    const TensorView b = c.bias ? vb.view({c.o}) : TensorView{};
    const TensorView grad_b = c.bias ? gb.view({c.o}) : TensorView{};
    const TensorView weights = vw.view({c.o, c.i}), grads = matrix(vg.flat(), c.t, c.o, c.gap);
    const TensorView inputs = matrix(vx.flat(), c.t, c.i, c.gap);
    forward(matrix(o.flat(), c.t, c.o, c.gap), inputs, weights, b, c.accumulate);
    backward_input(matrix(gx.flat(), c.t, c.i, c.gap), grads, weights, c.accumulate);
    backward_weight(gw.view({c.o, c.i}), grad_b, grads, inputs);
  };
  Floats want_out(result, out), want_grad_x(result, grad_x), want_weight(DType::kF32, grad_weight),
      want_bias(DType::kF32, grad_bias);
  std::tuple<Floats, Floats, Floats, Floats> host{Floats(operands, x), Floats(operands, weight),
                                                  Floats(operands, bias),
                                                  Floats(operands, grad_out)};
  run(host, want_out, want_grad_x, want_weight, want_bias, reference::linear_forward,
      reference::linear_backward_input, reference::linear_backward_weight);

  Context context = gpu_context();
  const DeviceValues scratch(DType::kF32, std::max<int64_t>(1, workspace_bytes / 4));
  context.set_library_workspace(workspace_bytes > 0 ? scratch.data() : nullptr, workspace_bytes);
  DeviceValues got_out(result, out), got_grad_x(result, grad_x),
      got_weight(DType::kF32, grad_weight), got_bias(DType::kF32, grad_bias);
  std::tuple<DeviceValues, DeviceValues, DeviceValues, DeviceValues> device{
      DeviceValues(operands, x), DeviceValues(operands, weight), DeviceValues(operands, bias),
      DeviceValues(operands, grad_out)};
  const auto forward = [&](const auto&... a) { linear_forward(context, a...); };
  const auto backward_input = [&](const auto&... a) { linear_backward_input(context, a...); };
  const auto backward_weight = [&](const auto&... a) { linear_backward_weight(context, a...); };
  run(device, got_out, got_grad_x, got_weight, got_bias, forward, backward_input, backward_weight);
  context.wait();
  // Whole buffers are compared: what lies between rows must stay.
  EXPECT_LE(rounding_ratio(result, got_out.floats(), want_out.floats()), 1);
  EXPECT_LE(rounding_ratio(result, got_grad_x.floats(), want_grad_x.floats()), 1);
  EXPECT_LE(error_ratio(difference(got_weight.floats(), want_weight.floats())), 1);
  EXPECT_LE(error_ratio(difference(got_bias.floats(), want_bias.floats())), 1);
}

TEST(LinearGpu, AgreesWithReference) {
  const int64_t most = linear_workspace_bytes(gpu_context());
  EXPECT_GT(most, 0);
  for (const Case& c : kCases)
    for (const auto& [operands, result] : {std::pair{DType::kF32, DType::kF32},
                                           {DType::kBF16, DType::kF32},
                                           {DType::kBF16, DType::kBF16}})
      for (const int64_t bytes : {most, int64_t{16} << 10}) check(c, operands, result, bytes);
}

TEST(LinearGpu, ScratchTooSmallForABiasIsRefused) {
  Context context = gpu_context();
  const DeviceValues x(DType::kBF16, std::vector<float>(16, 1.0f)), out(DType::kF32, 16);
  const auto view = [](const DeviceValues& v) { return v.view({4, 4}); };
  EXPECT_THROW(linear_forward(context, view(out), view(x), view(x), x.flat().slice(0, 0, 4)),
               Error);
}

}  // namespace
}  // namespace longnet::simt_test
