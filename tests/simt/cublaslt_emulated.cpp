// The calls of cuBLASLt that linear_cublaslt.cpp makes, on the host: D = alpha op(A) op(B) + beta C
// (+ bias per row), all column-major, sums in double. It refuses what the library's tables of types
// do not list, leading dimensions that are too small, columns or a bias that are less aligned than
// the heuristic was told, and another algorithm or scratch than the heuristic's; where the
// heuristic may choose sums that are rounded to bf16 on the way, it does.
#include <cublasLt.h>

#include <cstring>
#include <vector>

#include "core/bf16.h"
#include "simt/device_runtime_emulated.h"

struct cublasLtContext {};
struct cublasLtMatmulDescOpaque {
  cublasOperation_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  int bias_type = -1;  // as D
};
struct cublasLtMatrixLayoutOpaque {
  cudaDataType_t type;
  int64_t rows, columns, leading;
};
struct cublasLtMatmulPreferenceOpaque {
  uint64_t workspace = 0;
  uint32_t reductions = 7;  // any: partial sums may be rounded to the output's type
  uint32_t alignment[4] = {256, 256, 256, 256};  // A, B, C, D
};

namespace {

using longnet::bf16;

/// A matrix in memory, read as float.
struct Matrix {
  const void* data;
  const cublasLtMatrixLayoutOpaque& layout;
  float at(int64_t row, int64_t column) const {
    const int64_t place = row + column * layout.leading;
    return layout.type == CUDA_R_32F ? static_cast<const float*>(data)[place]
                                     : to_float(static_cast<const bf16*>(data)[place]);
  }
};

template <typename T>
bool take(T& to, const void* value, size_t bytes) {
  if (bytes != sizeof(T)) return false;
  std::memcpy(&to, value, sizeof(T));
  return true;
}
cublasStatus_t status_of(bool fine) {
  return fine ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

/// What the heuristic has promised: the algorithm holds it.
struct Promise {
  uint64_t tag;
  uint64_t m, n, k, alignments;
  uint64_t bias_alignment;
  uint64_t rounds;  // partial sums, to the output's type
};
constexpr uint64_t kTag = 0x656d756c61746564;

uint64_t packed(const uint32_t* alignment) {
  uint64_t all = 0;
  for (int i = 0; i < 4; ++i) all = all << 16 | alignment[i];
  return all;
}
/// Largest power of two up to 256 that divides the address; of null 256.
uint64_t alignment_of(const void* data) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(data) | 256;
  return bits & (~bits + 1);
}
/// Every column begins on such a boundary.
bool aligned(const void* data, const cublasLtMatrixLayoutOpaque& layout, uint64_t alignments,
             int place) {
  const uint64_t bytes = alignments >> (16 * (3 - place)) & 0xffff;
  const uint64_t distance = layout.columns <= 1         ? 0
                            : layout.type == CUDA_R_32F ? static_cast<uint64_t>(layout.leading) * 4
                                                        : static_cast<uint64_t>(layout.leading) * 2;
  return bytes != 0 && reinterpret_cast<uintptr_t>(data) % bytes == 0 && distance % bytes == 0;
}

struct Extents {
  int64_t m, n, k;
};

/// False where shapes or types do not go together.
bool fits(const cublasLtMatmulDescOpaque& d, const cublasLtMatrixLayoutOpaque& a,
          const cublasLtMatrixLayoutOpaque& b, const cublasLtMatrixLayoutOpaque& c,
          const cublasLtMatrixLayoutOpaque& out, Extents* e) {
  *e = {d.transpose_a == CUBLAS_OP_T ? a.columns : a.rows,
        d.transpose_b == CUBLAS_OP_T ? b.rows : b.columns,
        d.transpose_a == CUBLAS_OP_T ? a.rows : a.columns};
  const int64_t k = d.transpose_b == CUBLAS_OP_T ? b.columns : b.rows;
  for (const auto* x : {&a, &b, &c, &out})
    if (x->rows < 1 || x->columns < 1 || x->leading < x->rows) return false;
  if (e->k != k || out.rows != e->m || out.columns != e->n || c.rows != e->m || c.columns != e->n)
    return false;
  // Of CUBLAS_COMPUTE_32F: A and B alike, C and D alike and of A's type or float, the bias as D.
  if (a.type != b.type || c.type != out.type) return false;
  if (a.type == CUDA_R_32F && out.type != CUDA_R_32F) return false;
  return d.epilogue == CUBLASLT_EPILOGUE_DEFAULT || d.bias_type < 0 ||
         d.bias_type == static_cast<int>(out.type);
}

}  // namespace

const char* cublasLtGetStatusName(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS         ? "CUBLAS_STATUS_SUCCESS"
         : status == CUBLAS_STATUS_INVALID_VALUE ? "CUBLAS_STATUS_INVALID_VALUE"
                                                 : "CUBLAS_STATUS_NOT_SUPPORTED";
}
const char* cublasLtGetStatusString(cublasStatus_t) { return "the stand-in refuses it"; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  static cublasLtContext context;
  *handle = &context;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  *desc = new cublasLtMatmulDescOpaque;
  return status_of(compute == CUBLAS_COMPUTE_32F && scale == CUDA_R_32F);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t name,
                                              const void* value, size_t bytes) {
  switch (name) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return status_of(take(desc->transpose_a, value, bytes));
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return status_of(take(desc->transpose_b, value, bytes));
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return status_of(take(desc->epilogue, value, bytes));
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return status_of(take(desc->bias, value, bytes));
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return status_of(take(desc->bias_type, value, bytes));
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type,
                                          uint64_t rows, uint64_t columns, int64_t leading) {
  *layout = new cublasLtMatrixLayoutOpaque{type, static_cast<int64_t>(rows),
                                           static_cast<int64_t>(columns), leading};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t name,
                                                    const void* value, size_t bytes) {
  switch (name) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return status_of(take(preference->workspace, value, bytes));
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return status_of(take(preference->reductions, value, bytes));
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return status_of(take(preference->alignment[0], value, bytes));
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return status_of(take(preference->alignment[1], value, bytes));
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return status_of(take(preference->alignment[2], value, bytes));
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return status_of(take(preference->alignment[3], value, bytes));
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* found) {
  *found = 0;
  Extents e;
  if (wanted < 1 || !fits(*desc, *a, *b, *c, *d, &e)) return CUBLAS_STATUS_NOT_SUPPORTED;
  const Promise promise{kTag,
                        static_cast<uint64_t>(e.m),
                        static_cast<uint64_t>(e.n),
                        static_cast<uint64_t>(e.k),
                        packed(preference->alignment),
                        alignment_of(desc->bias),
                        (preference->reductions & ~2u) != 0 && d->type == CUDA_R_16BF};
  std::memcpy(results->algo.data, &promise, sizeof promise);
  results->workspaceSize = preference->workspace / 2;  // all of it is written below
  results->state = CUBLAS_STATUS_SUCCESS;
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo,
                              void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  longnet::simt::finish_copies(stream);
  Extents e;
  if (!fits(*desc, *a_layout, *b_layout, *c_layout, *d_layout, &e))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  Promise promise;
  std::memcpy(&promise, algo->data, sizeof promise);
  const auto extent = [](int64_t x) { return static_cast<uint64_t>(x); };
  if (promise.tag != kTag || promise.m != extent(e.m) || promise.n != extent(e.n) ||
      promise.k != extent(e.k) || !aligned(a, *a_layout, promise.alignments, 0) ||
      !aligned(b, *b_layout, promise.alignments, 1) ||
      !aligned(c, *c_layout, promise.alignments, 2) ||
      !aligned(d, *d_layout, promise.alignments, 3) || c != d ||
      alignment_of(desc->bias) < promise.bias_alignment ||
      (workspace_bytes > 0 && workspace == nullptr))
    return CUBLAS_STATUS_INVALID_VALUE;
  if (workspace_bytes > 0) std::memset(workspace, 0xff, workspace_bytes);  // the library's to use
  float alpha_value, beta_value;
  std::memcpy(&alpha_value, alpha, sizeof(float));
  std::memcpy(&beta_value, beta, sizeof(float));

  // op(A)'s rows and op(B)'s columns, each without gaps.
  const Matrix a_matrix{a, *a_layout}, b_matrix{b, *b_layout}, c_matrix{c, *c_layout};
  std::vector<double> rows(e.m * e.k), columns(e.n * e.k);
  for (int64_t i = 0; i < e.m; ++i)
    for (int64_t j = 0; j < e.k; ++j)
      rows[i * e.k + j] = desc->transpose_a == CUBLAS_OP_T ? a_matrix.at(j, i) : a_matrix.at(i, j);
  for (int64_t i = 0; i < e.n; ++i)
    for (int64_t j = 0; j < e.k; ++j)
      columns[i * e.k + j] =
          desc->transpose_b == CUBLAS_OP_T ? b_matrix.at(i, j) : b_matrix.at(j, i);
  const bool has_bias = desc->epilogue == CUBLASLT_EPILOGUE_BIAS;
  const cublasLtMatrixLayoutOpaque bias_layout{d_layout->type, e.m, 1, e.m};
  const Matrix bias{desc->bias, bias_layout};
  for (int64_t column = 0; column < e.n; ++column)
    for (int64_t row = 0; row < e.m; ++row) {
      const double *x = &rows[row * e.k], *y = &columns[column * e.k];
      double sum[4] = {};
      int64_t j = 0;
      for (; j + 4 <= e.k; j += 4)
        for (int64_t i = 0; i < 4; ++i) sum[i] += x[j + i] * y[j + i];
      for (; j < e.k; ++j) sum[0] += x[j] * y[j];
      if (promise.rounds)
        for (double& part : sum)
          part = longnet::to_float(longnet::to_bf16(static_cast<float>(part)));
      double value = alpha_value * (sum[0] + sum[1] + sum[2] + sum[3]);
      // With beta 0 the library does not read C.
      if (beta_value != 0) value += static_cast<double>(beta_value) * c_matrix.at(row, column);
      if (has_bias) value += bias.at(row, 0);
      const int64_t place = row + column * d_layout->leading;
      if (d_layout->type == CUDA_R_32F)
        static_cast<float*>(d)[place] = static_cast<float>(value);
      else
        static_cast<bf16*>(d)[place] = longnet::to_bf16(static_cast<float>(value));
    }
  return CUBLAS_STATUS_SUCCESS;
}
