// cross_entropy_cuda.h in a build without CUDA: every function throws.
#include "kernels/cross_entropy/cross_entropy_cuda.h"

namespace longnet::cuda {
namespace {

[[noreturn]] void refuse() {
  throw Error("loss on a GPU: built without CUDA; set run.backend=cpu or build with LN_CUDA=ON");
}

}  // namespace

int64_t cross_entropy_sums_bytes(int64_t) { refuse(); }
void cross_entropy_begin(Context&, void*) { refuse(); }
void cross_entropy(Context&, void*, const TensorView&, const TensorView&, float, bool) { refuse(); }

}  // namespace longnet::cuda
