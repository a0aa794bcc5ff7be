// cuBLASLt twin of linear.h: one descriptor set and one algorithm per shape, chosen once and kept.
//
// The library's heuristic chooses among algorithms that fit the scratch and the alignment of the
// rows; nothing is timed. f32 products use plain float32 (CUBLAS_COMPUTE_32F: no tf32), bf16
// products float32 sums; the bias is an epilogue. Nothing waits. Without a GPU, tests/simt runs
// this source over an emulation of the library.
#include "kernels/linear/linear_cublaslt.h"

#include <cublasLt.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "kernels/cast/cast_cuda.h"
#include "kernels/linear/linear_product.h"

namespace longnet::cublaslt {
namespace {

using internal::Product;
using internal::ProductShape;

// What NVIDIA recommends for its newest architectures; older ones need less.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

void check_cublas(cublasStatus_t status, const char* call, const char* file, int line) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const char* tail = std::strstr(file, "src/");
  throw Error("{} failed: {} ({}; {}:{})", call, cublasLtGetStatusString(status),
              cublasLtGetStatusName(status), tail ? tail : file, line);
}
#define LN_CUBLAS(call) check_cublas((call), #call, __FILE__, __LINE__)

cudaDataType_t cuda_type(DType dtype) { return dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F; }

/// Owns one of the library's descriptors.
template <typename T, cublasStatus_t (*kDestroy)(T)>
class Owned {
 public:
  Owned() = default;
  ~Owned() {
    if (value_ != nullptr) kDestroy(value_);
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  T* address() { return &value_; }
  T get() const { return value_; }

 private:
  T value_ = nullptr;
};

/// The library's state on the current device.
cublasLtHandle_t handle(int device) {
  static std::mutex mutex;
  static std::map<int, cublasLtHandle_t> handles;  // kept until the process ends
  const std::lock_guard<std::mutex> lock(mutex);
  cublasLtHandle_t& found = handles[device];
  if (found == nullptr) LN_CUBLAS(cublasLtCreate(&found));
  return found;
}

class Plan {
 public:
  Plan(cublasLtHandle_t library, const Product& product, int64_t workspace) {
    const ProductShape& s = product.shape;
    LN_CUBLAS(cublasLtMatmulDescCreate(operation_.address(), CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t a = s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t b = s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    set(CUBLASLT_MATMUL_DESC_TRANSA, a);
    set(CUBLASLT_MATMUL_DESC_TRANSB, b);
    if (s.has_bias) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, cuda_type(s.bias));
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias);  // the heuristic looks at its alignment
    }
    layout(a_, s.in, s.transpose_a ? s.k : s.m, s.transpose_a ? s.m : s.k, s.lda);
    layout(b_, s.in, s.transpose_b ? s.n : s.k, s.transpose_b ? s.k : s.n, s.ldb);
    layout(d_, s.out, s.m, s.n, s.ldd);

    Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy> preference;
    LN_CUBLAS(cublasLtMatmulPreferenceCreate(preference.address()));
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
      LN_CUBLAS(cublasLtMatmulPreferenceSetAttribute(preference.get(), name, &value, sizeof value));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(s.alignment_a));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(s.alignment_b));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(s.alignment_d));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(s.alignment_d));
    // Where the sum over k is split, its parts stay float, also for a bf16 output.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    int found = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(library, operation_.get(), a_.get(), b_.get(), d_.get(),
                                       d_.get(), preference.get(), 1, &choice_, &found);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED)
      check_cublas(status, "cublasLtMatmulAlgoGetHeuristic", __FILE__, __LINE__);
    if (found == 0)
      throw Error(
          "cuBLASLt has no algorithm for D {} [{}, {}] = {} [{}, {}] x [{}, {}], leading "
          "dimensions "
          "{}, {}, {}, aligned to {}, {}, {} bytes, within {} bytes of scratch",
          dtype_name(s.out), s.m, s.n, dtype_name(s.in), s.m, s.k, s.k, s.n, s.lda, s.ldb, s.ldd,
          s.alignment_a, s.alignment_b, s.alignment_d, workspace);
  }

  /// One caller at a time: the bias' address is part of the descriptor.
  void run(cublasLtHandle_t library, const Product& p, void* workspace,
           device_runtime::Stream stream) {
    const float alpha = 1.0f, beta = p.shape.accumulate ? 1.0f : 0.0f;
    if (p.shape.has_bias) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    LN_CUBLAS(cublasLtMatmul(library, operation_.get(), &alpha, p.a, a_.get(), p.b, b_.get(), &beta,
                             p.d, d_.get(), p.d, d_.get(), &choice_.algo, workspace,
                             choice_.workspaceSize, stream));
  }

 private:
  using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;

  template <typename T>
  void set(cublasLtMatmulDescAttributes_t name, const T& value) {
    LN_CUBLAS(cublasLtMatmulDescSetAttribute(operation_.get(), name, &value, sizeof value));
  }
  static void layout(Layout& layout, DType dtype, int64_t rows, int64_t columns, int64_t leading) {
    LN_CUBLAS(cublasLtMatrixLayoutCreate(layout.address(), cuda_type(dtype),
                                         static_cast<uint64_t>(rows),
                                         static_cast<uint64_t>(columns), leading));
  }

  Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy> operation_;
  Layout a_, b_, d_;
  cublasLtMatmulHeuristicResult_t choice_{};
};

/// workspace: how many bytes of the context's scratch the library may use.
void run(Context& context, const Product& product, int64_t workspace) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int64_t, ProductShape>, std::unique_ptr<Plan>> plans;
  const int device = context.device().index;
  cublasLtHandle_t library = handle(device);
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Plan>& plan = plans[{device, workspace, product.shape}];
  if (!plan) plan = std::make_unique<Plan>(library, product, workspace);
  plan->run(library, product, context.library_workspace(), context.stream());
}

void run(Context& context, const Product& product) {
  run(context, product, context.library_workspace_bytes());
}

/// f(first, count) for the columns of an output [T, O] or its gradient: those that
/// internal::whole_columns() sets apart, then the rest.
template <typename F>
void by_whole_columns(const TensorView& outputs, F f) {
  const int64_t columns = outputs.shape[1], whole = internal::whole_columns(outputs);
  f(0, whole);
  if (whole < columns) f(whole, columns - whole);
}

}  // namespace

int64_t workspace_bytes() { return kWorkspaceBytes; }

void linear_forward(Context& context, const TensorView& out, const TensorView& x,
                    const TensorView& weight, const TensorView& bias, bool accumulate) {
  if (!bias.defined())
    return by_whole_columns(out, [&](int64_t first, int64_t count) {
      run(context, internal::forward_product(out.slice(1, first, count), x,
                                             weight.slice(0, first, count), bias, accumulate));
    });
  if (bias.dtype == out.dtype)
    return run(context, internal::forward_product(out, x, weight, bias, accumulate));
  // The library takes a bias of the output's type only: a copy of it, at the end of the scratch.
  const int64_t bytes = bias.elements() * dtype_size(out.dtype);
  const int64_t room = (context.library_workspace_bytes() - bytes) / kAlignment * kAlignment;
  LN_CHECK(context.library_workspace_bytes() >= bytes,
           "{} bytes of library scratch are too few for a bias {}",
           context.library_workspace_bytes(), bias.describe());
  const TensorView copy(static_cast<char*>(context.library_workspace()) + room, out.dtype,
                        {bias.elements()}, bias.device);
  cuda::cast(context, copy, bias);
  run(context, internal::forward_product(out, x, weight, copy, accumulate), room);
}

void linear_backward_input(Context& context, const TensorView& grad_x, const TensorView& grad_out,
                           const TensorView& weight, bool accumulate) {
  // Two products would round a bf16 sum twice.
  if (grad_x.dtype != DType::kF32)
    return run(context, internal::backward_input_product(grad_x, grad_out, weight, accumulate));
  by_whole_columns(grad_out, [&](int64_t first, int64_t count) {
    run(context,
        internal::backward_input_product(grad_x, grad_out.slice(1, first, count),
                                         weight.slice(0, first, count), accumulate || first > 0));
  });
}

void linear_backward_weight(Context& context, const TensorView& grad_weight,
                            const TensorView& grad_bias, const TensorView& grad_out,
                            const TensorView& x) {
  by_whole_columns(grad_out, [&](int64_t first, int64_t count) {
    run(context, internal::backward_weight_product(grad_weight.slice(0, first, count),
                                                   grad_out.slice(1, first, count), x));
  });
  if (!grad_bias.defined()) return;
  // grad_bias [O] += column sums of grad_out [T, O]; the scratch is free again on this stream.
  const int64_t rows = grad_out.shape[0], columns = grad_out.shape[1];
  const int64_t splits =
      internal::column_sum_splits(rows, columns, context.library_workspace_bytes());
  add_column_sums(context.stream(), grad_bias.on_gpu<float>(),
                  static_cast<float*>(context.library_workspace()), grad_out.data, grad_out.dtype,
                  rows, columns, rows <= 1 ? columns : grad_out.stride[0], splits);
}

}  // namespace longnet::cublaslt
