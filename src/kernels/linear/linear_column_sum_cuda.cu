// Column sums of a matrix: the bias gradient of a linear layer. matrix [rows, columns] f32 or bf16,
// sums [columns] f32.
//
// A block of 32 x 8 threads owns 32 columns and one run of rows; thread (x, y) adds rows y, y + 8,
// ... of column x, then row 0 of the block adds its 8 sums in order. Reads the matrix once: rows x
// columns x 2 or 4 bytes, and is limited by that. Shared memory 1 KiB. Deterministic: every sum has
// one order. With several runs a second kernel adds them in order.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/numbers.h"
#include "kernels/linear/linear_cublaslt.h"

namespace longnet::cublaslt {
namespace {

constexpr int kColumns = 32;  // one warp reads one row's 32 neighbours
constexpr int kRows = 8;

struct ColumnSmem {
  float partial[kRows][kColumns];
};

__device__ float to_float(float value) { return value; }
__device__ float to_float(uint16_t bf16_bits) { return cuda::bf16_to_float(bf16_bits); }

/// grid (columns / 32, splits). into_sums: one run, whose result is added to out [columns];
/// otherwise out [splits, columns] takes each run's own.
template <typename T>
__global__ void __launch_bounds__(kColumns* kRows)
    sum_columns(float* out, const T* matrix, int64_t rows, int64_t columns, int64_t stride,
                int64_t rows_per_run, bool into_sums) {
  auto& sm = cuda::shared<ColumnSmem>();
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * rows_per_run;
  const int64_t end = first + rows_per_run < rows ? first + rows_per_run : rows;
  float sum = 0.0f;
  if (column < columns)
    for (int64_t row = first + threadIdx.y; row < end; row += kRows)
      sum += to_float(matrix[row * stride + column]);
  sm.partial[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  for (int y = 1; y < kRows; ++y) sum += sm.partial[y][threadIdx.x];
  if (into_sums) {
    out[column] += sum;
  } else {
    out[blockIdx.y * columns + column] = sum;
  }
}

template <typename T>
void start(device_runtime::Stream stream, float* out, const T* matrix, int64_t rows,
           int64_t columns, int64_t stride, int64_t splits, bool into_sums) {
  const dim3 grid(static_cast<unsigned>((columns + kColumns - 1) / kColumns),
                  static_cast<unsigned>(splits));
  const int64_t rows_per_run = (rows + splits - 1) / splits;
  cuda::launch(sum_columns<T>, grid, dim3(kColumns, kRows), sizeof(ColumnSmem), stream, out, matrix,
               rows, columns, stride, rows_per_run, into_sums);
}

}  // namespace

void add_column_sums(device_runtime::Stream stream, float* sums, float* partial, const void* matrix,
                     DType dtype, int64_t rows, int64_t columns, int64_t stride, int64_t splits) {
  float* first_out = splits > 1 ? partial : sums;
  if (dtype == DType::kBF16) {
    start(stream, first_out, static_cast<const uint16_t*>(matrix), rows, columns, stride, splits,
          splits == 1);
  } else {
    start(stream, first_out, static_cast<const float*>(matrix), rows, columns, stride, splits,
          splits == 1);
  }
  // partial [splits, columns]
  if (splits > 1) start(stream, sums, partial, splits, columns, columns, 1, true);
}

}  // namespace longnet::cublaslt
