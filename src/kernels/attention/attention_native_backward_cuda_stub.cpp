// The backward of attention_native.h in a build without CUDA: every function throws.
#include "kernels/attention/attention_native.h"

namespace longnet::cuda {
namespace {

[[noreturn]] void refuse() {
  throw Error(
      "attention on a GPU: built without CUDA; set run.backend=cpu or build with LN_CUDA=ON");
}

}  // namespace

int64_t native_backward_bytes(const AttentionSize&, std::span<const SegmentTask>) { refuse(); }
int64_t native_backward_shared_bytes(int64_t) { refuse(); }
void native_backward(Context&, const AttentionBackward&, const AttentionOptions&, void*) {
  refuse();
}

}  // namespace longnet::cuda
