// The cuBLASLt twin of linear.h, for the dispatcher only. Arguments are the same and checked
// already; T >= 1; tensors on the context's GPU, f32 or bf16 (linear_product.h lists the
// combinations).
//
// Sums are float32; tf32 is not used. Scratch is Context::library_workspace(). In a build without
// CUDA (linear_cublaslt_stub.cpp) every call throws a one-line Error.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet::cublaslt {

void linear_forward(Context& context, const TensorView& out, const TensorView& x,
                    const TensorView& weight, const TensorView& bias, bool accumulate);
void linear_backward_input(Context& context, const TensorView& grad_x, const TensorView& grad_out,
                           const TensorView& weight, bool accumulate);
void linear_backward_weight(Context& context, const TensorView& grad_weight,
                            const TensorView& grad_bias, const TensorView& grad_out,
                            const TensorView& x);

/// Bytes to offer with Context::set_library_workspace(); less is allowed but slower.
int64_t workspace_bytes();

/// sums [columns] += column sums of matrix [rows, columns] (f32 or bf16, row stride `stride`
/// elements), in a fixed order. partial: [splits, columns] floats, not used if splits is 1. In
/// linear_column_sum_cuda.cu.
void add_column_sums(device_runtime::Stream stream, float* sums, float* partial, const void* matrix,
                     DType dtype, int64_t rows, int64_t columns, int64_t stride, int64_t splits);

}  // namespace longnet::cublaslt
