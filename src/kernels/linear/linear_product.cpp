// See linear_product.h.
#include "kernels/linear/linear_product.h"

#include <algorithm>

namespace longnet::internal {
namespace {

/// Distance between rows; a matrix of one row may carry any stride, libraries want a row's room.
int64_t leading_dimension(const TensorView& view) {
  return view.shape[0] <= 1 ? std::max({view.stride[0], view.shape[1], int64_t{1}})
                            : view.stride[0];
}

int alignment_of_rows(const TensorView& view) {
  return alignment_of(view.data, leading_dimension(view) * dtype_size(view.dtype));
}

void check_types(const TensorView& a, const TensorView& b, const TensorView& d,
                 const TensorView& bias) {
  const bool inputs = a.dtype == b.dtype && (a.dtype == DType::kF32 || a.dtype == DType::kBF16);
  const bool output = d.dtype == a.dtype || d.dtype == DType::kF32;
  if (!inputs || !output || (bias.defined() && bias.dtype != d.dtype))
    throw Error(
        "linear layer of {} and {} into {}{}: allowed are f32 or bf16 inputs alike, an output of "
        "their type or f32, and a bias of the output's type",
        a.describe(), b.describe(), d.describe(),
        bias.defined() ? " with bias " + bias.describe() : "");
}

Product product(int64_t m, int64_t n, int64_t k, const TensorView& a, bool transpose_a,
                const TensorView& b, bool transpose_b, const TensorView& d, const TensorView& bias,
                bool accumulate) {
  check_types(a, b, d, bias);
  Product p;
  p.shape = {.m = m,
             .n = n,
             .k = k,
             .transpose_a = transpose_a,
             .transpose_b = transpose_b,
             .lda = leading_dimension(a),
             .ldb = leading_dimension(b),
             .ldd = leading_dimension(d),
             .in = a.dtype,
             .out = d.dtype,
             .bias = bias.defined() ? bias.dtype : DType::kF32,
             .has_bias = bias.defined(),
             .accumulate = accumulate,
             .alignment_a = alignment_of_rows(a),
             .alignment_b = alignment_of_rows(b),
             .alignment_d = alignment_of_rows(d)};
  p.a = a.data;
  p.b = b.data;
  p.bias = bias.data;
  if (bias.defined()) p.shape.alignment_bias = alignment_of(bias.data, 0);
  p.d = d.data;
  return p;
}

}  // namespace

int alignment_of(const void* data, int64_t row_bytes) {
  const uintptr_t bits =
      reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(row_bytes) | 256;
  return static_cast<int>(bits & (~bits + 1));
}

Product forward_product(const TensorView& out, const TensorView& x, const TensorView& weight,
                        const TensorView& bias, bool accumulate) {
  // out^T [O, T] = weight [O, I] x^T [I, T]; column-major, weight lies as [I, O] and x as [I, T].
  return product(weight.shape[0], x.shape[0], weight.shape[1], weight, true, x, false, out, bias,
                 accumulate);
}

Product backward_input_product(const TensorView& grad_x, const TensorView& grad_out,
                               const TensorView& weight, bool accumulate) {
  // grad_x^T [I, T] = weight^T [I, O] grad_out^T [O, T]; both lie so.
  return product(weight.shape[1], grad_x.shape[0], weight.shape[0], weight, false, grad_out, false,
                 grad_x, TensorView(), accumulate);
}

Product backward_weight_product(const TensorView& grad_weight, const TensorView& grad_out,
                                const TensorView& x) {
  LN_CHECK(grad_weight.dtype == DType::kF32, "weight gradients {} must be f32",
           grad_weight.describe());
  // grad_weight^T [I, O] += x^T [I, T] grad_out [T, O]; x lies as [I, T], grad_out as [O, T].
  return product(grad_weight.shape[1], grad_weight.shape[0], x.shape[0], x, false, grad_out, true,
                 grad_weight, TensorView(), true);
}

// Kernels for tensor cores move 16 bytes at a time. Those that load by TMA want addresses and
// leading dimensions in such units, which a caller gives by room between rows; older ones, and
// cuBLAS' documented conditions for its best performance, want contiguous extents in them too. The
// rest is a product of a few columns, so that all of the library's kernels can take the whole.
// Below kLarge a second call costs more than it can gain.
int64_t whole_columns(const TensorView& outputs) {
  constexpr int64_t kUnit = 8, kLarge = 4096;
  const int64_t columns = outputs.shape[1], whole = columns / kUnit * kUnit;
  return whole < kLarge || leading_dimension(outputs) % kUnit != 0 ? columns : whole;
}

int64_t column_sum_splits(int64_t rows, int64_t columns, int64_t workspace_bytes) {
  constexpr int64_t kRows = 512;  // of one run: enough work to hide starting a block
  constexpr int64_t kMost = 64;   // so that adding the runs stays small beside reading the rows
  const int64_t room =
      workspace_bytes / (std::max<int64_t>(columns, 1) * static_cast<int64_t>(sizeof(float)));
  const int64_t wanted = std::min(kMost, (rows + kRows - 1) / kRows);
  return std::max<int64_t>(1, std::min(wanted, room));
}

}  // namespace longnet::internal
