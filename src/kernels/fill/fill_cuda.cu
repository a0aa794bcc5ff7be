// CUDA twin of fill.h: one thread per pack of 4 elements (8 of bf16) in strides of the grid, 16
// bytes a store where rows are aligned; neighbours write neighbours. Axes without gaps are taken as
// one. Writes each byte once and reads none.
#include "core/context.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"
#include "kernels/fill/fill_cuda.h"

namespace longnet::cuda {
namespace {

constexpr int kThreads = 256;

/// Rows of `packs` packs each, [shape 0, shape 1, shape 2, packs].
struct Box {
  int64_t shape[TensorView::kMaxRank - 1], stride[TensorView::kMaxRank - 1], packs, all;
};

template <int kPack>
__global__ void __launch_bounds__(kThreads) fill_kernel(Elements values, Box box, float value) {
  float v[kPack];
  for (int j = 0; j < kPack; ++j) v[j] = value;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < box.all;
       i += int64_t{gridDim.x} * kThreads) {
    int64_t offset = i * kPack;
    if (box.packs != box.all) {
      int64_t row = i / box.packs;
      offset = (i - row * box.packs) * kPack;
      for (int axis = TensorView::kMaxRank - 2; axis >= 0; --axis) {
        offset += row % box.shape[axis] * box.stride[axis];
        row /= box.shape[axis];
      }
    }
    store(values, offset, v);
  }
}

}  // namespace

void fill(Context& context, const TensorView& values, float value) {
  // Rows without gaps become one, so that odd widths do not cost their alignment.
  TensorView rows = values;
  while (rows.rank > 1 && rows.stride[rows.rank - 2] == rows.shape[rows.rank - 1]) {
    rows.shape[rows.rank - 2] *= rows.shape[rows.rank - 1];
    rows.stride[rows.rank - 2] = 1;
    --rows.rank;
  }
  // One long row: packs as far as they go, then the tail element by element.
  const bool flat = rows.rank == 1;
  const auto start = [&](const TensorView& part, int pack) {
    Box box{};
    const int last = part.rank - 1;
    for (int axis = 0; axis < TensorView::kMaxRank - 1; ++axis) {
      const int from = axis - (TensorView::kMaxRank - 1 - last);
      box.shape[axis] = from >= 0 ? part.shape[from] : 1;
      box.stride[axis] = from >= 0 ? part.stride[from] : 0;
    }
    box.packs = part.shape[last] / pack;
    box.all = part.elements() / pack;
    with_pack(pack, [&](auto pack_size) {
      launch(fill_kernel<pack_size>, grid_stride_blocks(box.all, kThreads), kThreads, 0,
             context.stream(), elements_of(part), box, value);
    });
  };
  const int pack = pack_of({rows}, !flat);
  if (!flat) return start(rows, pack);
  const int64_t whole = rows.shape[0] / pack * pack;
  if (whole > 0) start(rows.slice(0, 0, whole), pack);
  if (whole < rows.shape[0]) start(rows.slice(0, whole, rows.shape[0] - whole), 1);
}

}  // namespace longnet::cuda
