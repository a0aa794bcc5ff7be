// embedding_cuda.h in a build without CUDA: every function throws.
#include "kernels/embedding/embedding_cuda.h"

namespace longnet::cuda {
namespace {

[[noreturn]] void refuse() {
  throw Error(
      "embedding on a GPU: built without CUDA; set run.backend=cpu or build with LN_CUDA=ON");
}

}  // namespace

void embedding_forward(Context&, const TensorView&, const TensorView&, const TensorView&) {
  refuse();
}
int64_t embedding_backward_workspace_bytes(int64_t, int64_t, int64_t) { refuse(); }
void embedding_backward(Context&, const TensorView&, const TensorView&, const TensorView&, void*) {
  refuse();
}

}  // namespace longnet::cuda
