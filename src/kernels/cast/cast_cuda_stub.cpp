// cast_cuda.h in a build without CUDA.
#include "kernels/cast/cast_cuda.h"

namespace longnet::cuda {

void cast(Context&, const TensorView&, const TensorView&) {
  throw Error("cast on a GPU: built without CUDA; set run.backend=cpu or build with LN_CUDA=ON");
}

}  // namespace longnet::cuda
