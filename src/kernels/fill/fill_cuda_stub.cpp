// fill_cuda.h in a build without CUDA.
#include "kernels/fill/fill_cuda.h"

namespace longnet::cuda {

void fill(Context&, const TensorView&, float) {
  throw Error("fill on a GPU: built without CUDA; set run.backend=cpu or build with LN_CUDA=ON");
}

}  // namespace longnet::cuda
