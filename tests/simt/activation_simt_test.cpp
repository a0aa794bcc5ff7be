// CUDA activations with and without the norm against the double reference, f32, bf16 and mixes.
#include "kernels/activation/activation.h"
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
  int64_t rows, width;
  Activation activation;
  bool norm;
};

void check(const Case& c, DType hidden_type, DType out_type) {
  const auto [rows, width, activation, norm] = c;
  const bool gated = activation == Activation::kSwiglu;
  const int64_t columns = gated ? 2 * width : width;
  const auto part = [&, width = width, rows = rows](TensorView all, int64_t index) {
    return all.view({rows, columns}).slice(1, index * width, width);
  };
  const auto vector = [&](std::vector<float>& v) {
    return norm ? TensorView(v.data(), DType::kF32, {static_cast<int64_t>(v.size())})
                : TensorView{};
  };
  const auto given = [&](const DeviceValues& v) { return norm ? v.flat() : TensorView{}; };
  Context context = gpu_context();
  std::vector<float> start = random_values(rows * columns, 1, 2.0f);
  start[0] = 100.0f;  // far into both tails
  if (start.size() > 1) start[1] = -100.0f;
  Floats hidden(hidden_type, start), out(out_type, std::vector<float>(rows * width));
  std::vector<float> weight = random_values(width, 2), bias = random_values(width, 3);
  std::vector<float> mean(rows), rstd(rows);
  const TensorView gate = gated ? part(hidden.flat(), 1) : TensorView{};
  reference::activation_forward({.out = out.view({rows, width}),
                                 .mean = vector(mean),
                                 .rstd = vector(rstd),
                                 .hidden = part(hidden.flat(), 0),
                                 .gate = gate,
                                 .weight = vector(weight),
                                 .bias = vector(bias),
                                 .eps = 1e-5f,
                                 .activation = activation});
  const DeviceValues d_hidden(hidden_type, start), d_out(out_type, rows * width);
  const DeviceValues d_weight(DType::kF32, weight), d_bias(DType::kF32, bias);
  const DeviceValues d_mean(DType::kF32, rows), d_rstd(DType::kF32, rows);
  const DeviceValues workspace(DType::kF32, activation_workspace_bytes(context, width) / 4);
  const TensorView d_gate = gated ? part(d_hidden.flat(), 1) : TensorView{};
  activation_forward(context,
                     {.out = d_out.view({rows, width}),
                      .mean = given(d_mean),
                      .rstd = given(d_rstd),
                      .hidden = part(d_hidden.flat(), 0),
                      .gate = d_gate,
                      .weight = given(d_weight),
                      .bias = given(d_bias),
                      .eps = 1e-5f,
                      .activation = activation},
                     workspace.data());
  context.wait();
  EXPECT_LE(rounding_ratio(out_type, d_out.floats(), out.floats()), 1);
  if (norm) {
    EXPECT_LE(error_ratio(difference(d_mean.floats(), mean)), 1);
    EXPECT_LE(error_ratio(difference(d_rstd.floats(), rstd)), 1);
  }
  Floats grad_out(out_type, random_values(rows * width, 4));
  Floats grad_hidden(hidden_type, std::vector<float>(rows * columns));
  std::vector<float> grad_weight = random_values(width, 5), grad_bias = random_values(width, 6);
  const DeviceValues d_grad_out(out_type, grad_out.floats());
  const DeviceValues d_grad_hidden(hidden_type, rows * columns);
  const DeviceValues d_grad_weight(DType::kF32, grad_weight), d_grad_bias(DType::kF32, grad_bias);
  const DeviceValues exact_mean(DType::kF32, mean), exact_rstd(DType::kF32, rstd);
  reference::activation_backward({.grad_hidden = part(grad_hidden.flat(), 0),
                                  .grad_gate = gated ? part(grad_hidden.flat(), 1) : TensorView{},
                                  .grad_weight = vector(grad_weight),
                                  .grad_bias = vector(grad_bias),
                                  .grad_out = grad_out.view({rows, width}),
                                  .hidden = part(hidden.flat(), 0),
                                  .gate = gate,
                                  .mean = vector(mean),
                                  .rstd = vector(rstd),
                                  .weight = vector(weight),
                                  .activation = activation});
  activation_backward(context,
                      {.grad_hidden = part(d_grad_hidden.flat(), 0),
                       .grad_gate = gated ? part(d_grad_hidden.flat(), 1) : TensorView{},
                       .grad_weight = given(d_grad_weight),
                       .grad_bias = given(d_grad_bias),
                       .grad_out = d_grad_out.view({rows, width}),
                       .hidden = part(d_hidden.flat(), 0),
                       .gate = d_gate,
                       .mean = given(exact_mean),
                       .rstd = given(exact_rstd),
                       .weight = given(d_weight),
                       .activation = activation},
                      workspace.data());
  context.wait();
  EXPECT_LE(rounding_ratio(hidden_type, d_grad_hidden.floats(), grad_hidden.floats()), 1);
  EXPECT_LE(error_ratio(difference(d_grad_weight.floats(), grad_weight)), 1);
  EXPECT_LE(error_ratio(difference(d_grad_bias.floats(), grad_bias)), 1);
}

const Case kCases[] = {{1, 1, Activation::kGelu, false},     {3, 7, Activation::kGelu, true},
                       {65, 192, Activation::kGelu, true},   {40, 768, Activation::kGelu, false},
                       {5, 33, Activation::kSwiglu, false},  {70, 96, Activation::kSwiglu, true},
                       {9, 264, Activation::kSwiglu, false}, {3, 6400, Activation::kGelu, true}};

TEST(ActivationSimt, AgreesWithReference) {
  int index = 0;
  for (const Case& c : kCases)
    for (const DType hidden : {DType::kF32, DType::kBF16})
      for (const DType out : {DType::kF32, DType::kBF16}) {
        SCOPED_TRACE(fmt::format("{} x {} {} {} {}", c.rows, c.width,
                                 c.activation == Activation::kGelu ? "gelu" : "swiglu",
                                 dtype_name(hidden), dtype_name(out)));
        ++index;
        simt::set_order(kOrders[index % 4], uint64_t(index));
        check(c, hidden, out);
      }
  simt::set_order(simt::Order::kAscending, 1);
}

TEST(ActivationSimt, GatesWrittenToOnePlaceAreFound) {
  if (!simt::race_checked()) GTEST_SKIP() << "only in the race build";
  const std::string found = found_with_defect(64, [] {
    const int64_t n = 64;
    Context context = gpu_context();
    const DeviceValues values(DType::kF32, random_values(4 * n, 1)), grad(DType::kF32, 2 * n);
    const auto row = [&](const DeviceValues& v, int64_t index) {
      return v.flat().slice(0, index * n, n).view({1, n});
    };
    activation_backward(context,
                        {.grad_hidden = row(grad, 0),
                         .grad_gate = row(grad, 1),
                         .grad_weight = {},
                         .grad_bias = {},
                         .grad_out = row(values, 0),
                         .hidden = row(values, 1),
                         .gate = row(values, 2),
                         .mean = {},
                         .rstd = {},
                         .weight = {},
                         .activation = Activation::kSwiglu},
                        values.data());
  });
  EXPECT_NE(found.find("race: write after write at"), std::string::npos) << found;
}

}  // namespace
}  // namespace longnet::simt_test
