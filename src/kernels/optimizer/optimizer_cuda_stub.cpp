// optimizer_cuda.h in a build without CUDA: every function throws.
#include "kernels/optimizer/optimizer_cuda.h"

namespace longnet::cuda {
namespace {

[[noreturn]] void refuse() {
  throw Error(
      "optimizer on a GPU: built without CUDA; set run.backend=cpu or build with LN_CUDA=ON");
}

}  // namespace

void adamw_update(Context&, float*, float*, float*, const float*, int64_t, const AdamWFactors&) {
  refuse();
}
void stable_terms(Context&, double*, float*, const float*, const AdamWFactors&, const SumRange&,
                  const SumRange&, void*) {
  refuse();
}
void square_terms(Context&, double*, const float*, const SumRange&, const SumRange&, void*) {
  refuse();
}
void stable_apply(Context&, float*, float*, const float*, const float*, int64_t,
                  const AdamWFactors&) {
  refuse();
}

}  // namespace longnet::cuda
