// attention_cuda.h in a build without CUDA: every function throws.
#include "kernels/attention/attention_cuda.h"

namespace longnet::cuda {
namespace {

[[noreturn]] void refuse() {
  throw Error(
      "attention on a GPU: built without CUDA; set run.backend=cpu or build with LN_CUDA=ON");
}

}  // namespace

int64_t attention_workspace_bytes(const Context&, int64_t, std::span<const SegmentTask>, bool) {
  refuse();
}
void attention_begin(Context&, const TensorView&, const TensorView&) { refuse(); }
void attention_forward(Context&, const AttentionForward&, const AttentionOptions&, void*) {
  refuse();
}
void attention_delta(Context&, const TensorView&, const TensorView&, const TensorView&) {
  refuse();
}
void attention_backward(Context&, const AttentionBackward&, const AttentionOptions&, void*) {
  refuse();
}
void attention_pack_rows(Context&, const TensorView&, const TensorView&, const TensorView&,
                         const TensorView&, const HeadRows&, std::span<const int64_t>,
                         const SegmentTask&, const AttentionOptions&) {
  refuse();
}
void attention_unpack_rows_add(Context&, const TensorView&, const TensorView&, const TensorView&,
                               const TensorView&, const HeadRows&, std::span<const int64_t>,
                               const SegmentTask&, const AttentionOptions&) {
  refuse();
}

}  // namespace longnet::cuda
