// activation_cuda.h in a build without CUDA: every function throws.
#include "kernels/activation/activation_cuda.h"

namespace longnet::cuda {
namespace {

[[noreturn]] void refuse() {
  throw Error(
      "activation on a GPU: built without CUDA; set run.backend=cpu or build with LN_CUDA=ON");
}

}  // namespace

int64_t activation_workspace_bytes(int64_t) { refuse(); }
void activation_forward(Context&, const ActivationForward&, void*) { refuse(); }
void activation_backward(Context&, const ActivationBackward&, void*) { refuse(); }

}  // namespace longnet::cuda
