// Linear layers on a GPU: linear_cublaslt.cpp as the CUDA build has it, over the library or its
// stand-in (cublaslt_emulated.cpp), against the double reference at the CPU twin's shapes.
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
constexpr Case kCases[] = {{0, 5, 4, 0, true, false},
                           {1, 1, 1, 0, true, false},
                           {1, 33, 7, 3, false, true},
                           {5, 7, 33, 0, true, true},
                           {130, 192, 64, 0, true, false},
                           {257, 96, 100, 12, true, false},
                           {700, 31, 48, 5, true, true},
                           // A large odd output with room between rows: two products each.
                           {6, 4101, 16, 59, false, false},
                           {3, 4101, 16, 59, false, true}};

/// One tensor's numbers for the reference and, the same, on the GPU.
struct Both {
  Both(DType dtype, int64_t n, uint64_t seed)
      : host(dtype, random_values(n, seed)), device(dtype, random_values(n, seed)) {}
  Floats host;
  DeviceValues device;
};

void check(const Case& c, DType in, DType out) {
  const auto [t, o, i, gap, with_bias, accumulate] = c;
  Context context = gpu_context();
  // Less than is offered in training, so that several runs of rows do not fit.
  const DeviceValues scratch(DType::kF32, 4096);
  context.set_library_workspace(scratch.data(), 4096 * 4);
  Both x(in, t * (i + gap) + 1, 1), weight(in, o * i, 2), bias(in, o, 3);
  Both grad_out(in, t * (o + gap) + 1, 4), y(out, t * (o + gap) + 1, 5);
  Both grad_x(out, t * (i + gap) + 1, 6);
  Both grad_weight(DType::kF32, o * i, 7), grad_bias(DType::kF32, o, 8);
  for (const bool gpu : {false, true}) {
    const auto matrix = [&](Both& b, int64_t rows, int64_t columns, int64_t extra) {
      TensorView view = gpu ? b.device.view({rows, columns}) : b.host.view({rows, columns});
      view.stride[0] = columns + extra;
      return view;
    };
    const auto vector = [&](Both& b) {
      if (!with_bias) return TensorView{};
      return gpu ? b.device.view({o}) : b.host.view({o});
    };
    const TensorView y_view = matrix(y, t, o, gap), x_view = matrix(x, t, i, gap);
    const TensorView w = matrix(weight, o, i, 0), g = matrix(grad_out, t, o, gap);
    const TensorView grad_x_view = matrix(grad_x, t, i, gap), grad_w = matrix(grad_weight, o, i, 0);
    if (gpu) {
      linear_forward(context, y_view, x_view, w, vector(bias), accumulate);
      linear_backward_input(context, grad_x_view, g, w, accumulate);
      linear_backward_weight(context, grad_w, vector(grad_bias), g, x_view);
      context.wait();
    } else {
      reference::linear_forward(y_view, x_view, w, vector(bias), accumulate);
      reference::linear_backward_input(grad_x_view, g, w, accumulate);
      reference::linear_backward_weight(grad_w, vector(grad_bias), g, x_view);
    }
  }
  // Gaps between rows must stay as they were: whole buffers are compared.
  EXPECT_LE(rounding_ratio(out, y.device.floats(), y.host.floats()), 1) << t << " " << o;
  EXPECT_LE(rounding_ratio(out, grad_x.device.floats(), grad_x.host.floats()), 1) << t << " " << o;
  EXPECT_LE(error_ratio(difference(grad_weight.device.floats(), grad_weight.host.floats())), 1)
      << t << " " << o;
  EXPECT_LE(error_ratio(difference(grad_bias.device.floats(), grad_bias.host.floats())), 1)
      << t << " " << o;
  EXPECT_EQ(context.work().matmul_flops, 3 * 2.0 * t * o * i);
}

TEST(LinearSimt, AgreesWithReference) {
  for (const Case& c : kCases) check(c, DType::kF32, DType::kF32);
}

TEST(LinearSimt, Bf16AgreesWithReference) {
  for (const Case& c : kCases)
    for (const DType out : {DType::kF32, DType::kBF16}) check(c, DType::kBF16, out);
}

TEST(LinearSimt, SaysWhereScratchIsTooSmallForABias) {
  Context context = gpu_context();
  const DeviceValues x(DType::kBF16, random_values(64, 1)), w(DType::kBF16, random_values(64, 2));
  const DeviceValues bias(DType::kBF16, random_values(8, 3)), y(DType::kF32, 64);
  const auto run = [&] {
    linear_forward(context, y.view({8, 8}), x.view({8, 8}), w.view({8, 8}), bias.view({8}));
  };
  EXPECT_THROW(run(), Error);  // no scratch at all
  const DeviceValues scratch(DType::kF32, 64);
  context.set_library_workspace(scratch.data(), 256);
  EXPECT_NO_THROW(run());
}

}  // namespace
}  // namespace longnet::simt_test
