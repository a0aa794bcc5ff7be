// The forward of attention_native.h in a build without CUDA: every function throws.
#include "kernels/attention/attention_native.h"

namespace longnet::cuda {
namespace {

[[noreturn]] void refuse() {
  throw Error(
      "attention on a GPU: built without CUDA; set run.backend=cpu or build with LN_CUDA=ON");
}

}  // namespace

int64_t native_forward_bytes(const AttentionSize&, std::span<const SegmentTask>) { refuse(); }
int64_t native_forward_shared_bytes(int64_t) { refuse(); }
void native_forward(Context&, const AttentionForward&, const AttentionOptions&, void*) { refuse(); }

}  // namespace longnet::cuda
