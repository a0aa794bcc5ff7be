// CUDA twin of fill.h: one thread per element in strides of the grid; neighbours write neighbours.
#include "kernels/cuda/simt.h"
#include "kernels/cuda/stream.h"
#include "kernels/fill/fill_cuda.h"

namespace longnet::cuda {
namespace {

constexpr int kThreads = 256;

struct Box {
  int64_t shape[TensorView::kMaxRank], stride[TensorView::kMaxRank], elements;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) fill_kernel(T* values, Box box, T value) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < box.elements;
       i += int64_t{gridDim.x} * kThreads) {
    int64_t rest = i, offset = 0;
    for (int axis = TensorView::kMaxRank - 1; axis >= 0; --axis) {
      offset += rest % box.shape[axis] * box.stride[axis];
      rest /= box.shape[axis];
    }
    values[offset] = value;
  }
}

}  // namespace

void fill(Context& context, const TensorView& values, float value) {
  Box box{};
  box.elements = values.elements();
  if (context.counting() || box.elements == 0) return;
  for (int axis = 0; axis < TensorView::kMaxRank; ++axis) {
    box.shape[axis] = axis < values.rank ? values.shape[axis] : 1;
    box.stride[axis] = axis < values.rank ? values.stride[axis] : 0;
  }
  const dim3 grid(
      static_cast<unsigned>(std::min<int64_t>((box.elements + kThreads - 1) / kThreads, 65536)));
  void* stream = context_stream(context);
  if (values.dtype == DType::kF32)
    launch(fill_kernel<float>, grid, kThreads, 0, stream, static_cast<float*>(values.data), box,
           value);
  else if (values.dtype == DType::kBF16)
    launch(fill_kernel<uint16_t>, grid, kThreads, 0, stream, static_cast<uint16_t*>(values.data),
           box, float_to_bf16_host(value));
  else
    throw Error("fill of {}: allowed are f32 and bf16", values.describe());
}

}  // namespace longnet::cuda
