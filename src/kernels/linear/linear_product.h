// The three products of linear.h in the terms of a BLAS library: column-major, transposes, leading
// dimensions. Pure bookkeeping on the host: it reads no element and calls no library.
//
// A row-major matrix [rows, columns] with distance `stride` between rows is, column-major, its
// transpose [columns, rows] with leading dimension `stride`. So every product below computes the
// transpose of what linear.h says, which in memory is the same.
#pragma once

#include <compare>
#include <cstdint>

#include "core/tensor.h"

namespace longnet::internal {

/// D [m, n] = op(A) [m, k] op(B) [k, n] (+ bias [m], the same for every column) (+ D if
/// accumulate). Holds everything that the choice of an algorithm depends on; leading dimensions in
/// elements.
struct ProductShape {
  int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false;
  int64_t lda = 0, ldb = 0, ldd = 0;
  DType in = DType::kF32;    // of A and B
  DType out = DType::kF32;   // of D
  DType bias = DType::kF32;  // read only if has_bias
  bool has_bias = false;
  bool accumulate = false;
  int alignment_a = 0, alignment_b = 0, alignment_d = 0;  // bytes, of every row in memory
  int alignment_bias = 0;
  auto operator<=>(const ProductShape&) const = default;
};

struct Product {
  ProductShape shape;
  const void* a = nullptr;
  const void* b = nullptr;
  const void* bias = nullptr;
  void* d = nullptr;
};

/// Largest power of two, at most 256, that divides the address and the row pitch, and therefore the
/// address of every row.
int alignment_of(const void* data, int64_t row_bytes);

/// out [T, O] = x [T, I] weight^T (+ bias [O]) (+ out): D = out^T [O, T]. Throws Error for types
/// that no library supports: x and weight must have one type, f32 or bf16; out that type or f32;
/// the bias the type of out.
Product forward_product(const TensorView& out, const TensorView& x, const TensorView& weight,
                        const TensorView& bias, bool accumulate);
/// grad_x [T, I] = grad_out [T, O] weight (+ grad_x): D = grad_x^T [I, T].
Product backward_input_product(const TensorView& grad_x, const TensorView& grad_out,
                               const TensorView& weight, bool accumulate);
/// grad_weight [O, I] += grad_out^T x: D = grad_weight^T [I, O], f32.
Product backward_weight_product(const TensorView& grad_weight, const TensorView& grad_out,
                                const TensorView& x);

/// Columns of an output [T, O], or of its gradient, that one product computes: all, or those of a
/// large O up to a multiple of 8; a second product computes the rest.
int64_t whole_columns(const TensorView& outputs);

/// Number of row ranges into which the column sums of a [rows, columns] matrix are split, one block
/// each. Depends on the shape and the scratch only, so results are the same every time.
/// workspace_bytes: must hold [splits, columns] floats if splits > 1.
int64_t column_sum_splits(int64_t rows, int64_t columns, int64_t workspace_bytes);

}  // namespace longnet::internal
