// CUDA twin of cast.h: a thread moves two packs of 4 elements (8 where both are bf16), half a grid
// apart, in strides of the grid, so that two loads of up to 16 bytes are under way; neighbours move
// neighbours. 6 bytes per element of a rounding; limited by memory. The tail of less than a pack
// goes element by element.
#include "kernels/cast/cast_cuda.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/stream.h"

namespace longnet::cuda {
namespace {

constexpr int kThreads = 256;

template <int kPack>
__global__ void __launch_bounds__(kThreads) cast_kernel(Elements out, Elements in, int64_t packs) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < packs; i += 2 * stride) {
    const int64_t other = i + stride;
    float a[kPack], b[kPack] = {};
    load(a, in, i * kPack);
    if (other < packs) load(b, in, other * kPack);
    store(out, i * kPack, a);
    if (LN_BUG == 63 || other < packs) store(out, other * kPack, b);
  }
}

void start(Context& context, const Elements& out, const Elements& in, int64_t packs, int pack) {
  with_pack(pack, [&](auto pack_size) {
    launch(cast_kernel<pack_size>, grid_stride_blocks(packs, 2 * kThreads), kThreads, 0,
           context_stream(context), out, in, packs);
  });
}

Elements from(const TensorView& view, int64_t element) {
  return {static_cast<char*>(view.data) + element * dtype_size(view.dtype),
          view.dtype == DType::kBF16};
}

}  // namespace

void cast(Context& context, const TensorView& out, const TensorView& in) {
  const int64_t n = in.elements();
  const int pack = pack_of({out, in}, false);
  const int64_t whole = n / pack * pack;
  start(context, from(out, 0), from(in, 0), whole / pack, pack);
  start(context, from(out, whole), from(in, whole), n - whole, 1);
}

}  // namespace longnet::cuda
