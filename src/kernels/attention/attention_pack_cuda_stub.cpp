// attention_pack_cuda.h in a build without CUDA: every function throws.
#include "kernels/attention/attention_pack_cuda.h"

namespace longnet::cuda {
namespace {

[[noreturn]] void refuse() {
  throw Error(
      "attention on a GPU: built without CUDA; set run.backend=cpu or build with LN_CUDA=ON");
}

}  // namespace

void sdpa_pack_rows(Context&, void*, const SpanList&, DType, const RowPositions&) { refuse(); }
void sdpa_pack_results(Context&, void*, float*, const SpanList&, const LseRows&) { refuse(); }
void sdpa_merge_rows(Context&, const SpanList&, const LseRows&, const void*, const float*) {
  refuse();
}
void sdpa_add_rows(Context&, const SpanList&, const void*, const RowPositions&) { refuse(); }

}  // namespace longnet::cuda
