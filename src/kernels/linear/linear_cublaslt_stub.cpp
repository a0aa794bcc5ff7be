// linear_cublaslt.h in a build without CUDA. Twin: linear_cublaslt.cpp.
#include "kernels/linear/linear_cublaslt.h"

namespace longnet::cublaslt {
namespace {

[[noreturn]] void absent() {
  throw Error("linear layers on a GPU: {}", device_runtime::availability().reason);
}

}  // namespace

void linear_forward(Context&, const TensorView&, const TensorView&, const TensorView&,
                    const TensorView&, bool) {
  absent();
}
void linear_backward_input(Context&, const TensorView&, const TensorView&, const TensorView&,
                           bool) {
  absent();
}
void linear_backward_weight(Context&, const TensorView&, const TensorView&, const TensorView&,
                            const TensorView&) {
  absent();
}
int64_t workspace_bytes() { return 0; }

}  // namespace longnet::cublaslt
