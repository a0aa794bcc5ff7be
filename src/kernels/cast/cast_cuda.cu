// CUDA twin of cast.h: a thread moves two packs of 4 elements (8 where both are bf16), half a grid
// apart, in strides of the grid, so that two loads of up to 16 bytes are under way; neighbours move
// neighbours. blockIdx.y is the row; tensors without gaps are one row. 6 bytes per element of a
// rounding; limited by memory. A row's tail of less than a pack goes element by element.
#include "core/context.h"
#include "kernels/cast/cast_cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"

namespace longnet::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostRows = 1024;  // of a grid; more are taken in turn

template <int kPack>
__global__ void __launch_bounds__(kThreads)
    cast_kernel(Elements out, Elements in, int64_t rows, int64_t width, int64_t out_stride,
                int64_t in_stride) {
  const int64_t packs = width / kPack, stride = int64_t{gridDim.x} * kThreads;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const int64_t to = row * out_stride, from = row * in_stride;
    for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < packs; i += 2 * stride) {
      const int64_t other = i + stride;
      float a[kPack], b[kPack] = {};
      load(a, in, from + i * kPack);
      if (other < packs) load(b, in, from + other * kPack);
      store(out, to + i * kPack, a);
      if (other < packs) store(out, to + other * kPack, b);
    }
    const int64_t last = packs * kPack + threadIdx.x;
    if (blockIdx.x == 0 && last < width) {
      float a[1];
      load(a, in, from + last);
      store(out, to + last, a);
    }
  }
}

}  // namespace

void cast(Context& context, const TensorView& out_view, const TensorView& in_view) {
  const bool flat = out_view.contiguous() && in_view.contiguous();
  const TensorView out = flat ? out_view.view({1, out_view.elements()}) : out_view;
  const TensorView in = flat ? in_view.view({1, in_view.elements()}) : in_view;
  const int64_t rows = in.shape[0], width = in.shape[1];
  with_pack(pack_of({out, in}, false), [&](auto pack) {
    // A width below a pack has a tail only, which the first block writes.
    const dim3 grid(grid_stride_blocks(std::max<int64_t>(width / pack, 1), 2 * kThreads),
                    static_cast<unsigned>(std::min(rows, kMostRows)));
    launch(cast_kernel<pack>, grid, kThreads, 0, context.stream(), elements_of(out),
           elements_of(in), rows, width, out.stride[0], in.stride[0]);
  });
}

}  // namespace longnet::cuda
