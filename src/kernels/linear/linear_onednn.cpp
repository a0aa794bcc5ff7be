// oneDNN twin of linear.h: three matmul primitives, created once per shape, strides and team.
//
// oneDNN divides a product among the threads that OpenMP reports when the primitive is created. If
// the team is smaller at execution, the other threads' share is silently left out, so every product
// is created and executed within one LibraryTeam.
//
// Plain (unpacked) layouts: weights change every step, and rows of x and y may be views of wider
// buffers. Sums are float32 inside oneDNN; the bias gradient is a column sum in a fixed order. bf16
// operands need a processor with AVX-512 BF16: elsewhere oneDNN has no primitive or a slow one, so
// operands are widened, 256 token rows at a time, and multiplied in float32.
#include "kernels/linear/linear_onednn.h"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "core/bf16.h"
#include "core/threads.h"
#include "kernels/cast/cast_cpu.h"

namespace longnet::onednn {
namespace {

/// C [m, n] = A [m, k] B [k, n] (+ bias [n]) (+ C); strides in elements.
struct Product {
  int64_t m, n, k;
  int64_t a_row, a_column, b_row, b_column, c_row;
  bool bias, accumulate;
  DType in, out;  // of A, B and the bias; of C
};
using Key = std::array<int64_t, 13>;
Key key_of(const Product& p, const LibraryTeam& team) {
  return {p.m,     p.n,    p.k,          p.a_row,       p.a_column,     p.b_row,    p.b_column,
          p.c_row, p.bias, p.accumulate, int64_t(p.in), int64_t(p.out), team.size()};
}

dnnl::engine& engine() {
  static dnnl::engine instance(dnnl::engine::kind::cpu, 0);
  return instance;
}

dnnl::memory::desc matrix(DType dtype, int64_t rows, int64_t columns, int64_t row_stride,
                          int64_t column_stride) {
  const auto type =
      dtype == DType::kBF16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  return {{rows, columns}, type, {row_stride, column_stride}};
}

/// Whatever the version of oneDNN: c = a b (+ bias, unless its description is empty). oneDNN 3 has
/// no description of the operation apart from the primitive's.
dnnl::matmul::primitive_desc describe(const dnnl::memory::desc& a, const dnnl::memory::desc& b,
                                      const dnnl::memory::desc& bias, const dnnl::memory::desc& c,
                                      const dnnl::primitive_attr& attributes) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine(), a, b, bias, c, attributes};
#else
  return {{a, b, bias, c}, attributes, engine()};
#endif
}

struct Primitive {
  dnnl::matmul::primitive_desc description;
  dnnl::matmul matmul;
};

Primitive& primitive_for(const Product& p, const LibraryTeam& team) {
  static std::mutex mutex;
  static std::map<Key, Primitive> cache;
  const std::lock_guard<std::mutex> lock(mutex);
  const Key key = key_of(p, team);
  const auto found = cache.find(key);
  if (found != cache.end()) return found->second;
  dnnl::primitive_attr attributes;
  if (p.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
  const auto a = matrix(p.in, p.m, p.k, p.a_row, p.a_column);
  const auto b = matrix(p.in, p.k, p.n, p.b_row, p.b_column);
  const auto bias = p.bias ? matrix(p.in, 1, p.n, p.n, 1) : dnnl::memory::desc();
  const auto c = matrix(p.out, p.m, p.n, p.c_row, 1);
  const auto primitive = describe(a, b, bias, c, attributes);
  return cache.emplace(key, Primitive{primitive, dnnl::matmul(primitive)}).first->second;
}

void run(const LibraryTeam& team, const Product& p, const void* a, const void* b, const void* bias,
         void* c) {
  Primitive& primitive = primitive_for(p, team);
  static thread_local dnnl::stream stream(engine());
  const auto memory = [](const dnnl::memory::desc& description, const void* data) {
    return dnnl::memory(description, engine(), const_cast<void*>(data));
  };
  std::unordered_map<int, dnnl::memory> arguments{
      {DNNL_ARG_SRC, memory(primitive.description.src_desc(), a)},
      {DNNL_ARG_WEIGHTS, memory(primitive.description.weights_desc(), b)},
      {DNNL_ARG_DST, memory(primitive.description.dst_desc(), c)}};
  if (p.bias) arguments.emplace(DNNL_ARG_BIAS, memory(primitive.description.bias_desc(), bias));
  primitive.matmul.execute(stream, arguments);
  stream.wait();
}

/// Distance between rows. A matrix of one row may carry any stride; oneDNN needs a valid one.
int64_t row_stride(const TensorView& view) {
  return view.shape[0] <= 1 ? std::max<int64_t>(view.shape[1], 1) : view.stride[0];
}

/// Whether bf16 operands go to oneDNN as they are.
bool has_bf16_products(const Context& context) {
  if (context.isa() != Isa::kAvx512) return false;
  static const bool has = [] {
    constexpr auto kWanted = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
    return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & kWanted) == kWanted;
  }();
  return has;
}

/// in: type of a product's operands; float32 operands with a bf16 result exist on no path of
/// oneDNN.
bool runs_as_is(const Context& context, const TensorView& in, const TensorView& out) {
  if (in.dtype == DType::kF32) return out.dtype == DType::kF32;
  return has_bf16_products(context);
}

constexpr int64_t kWidenedRows = 256;  // a block of 256 x 4096 widened floats takes 4 MiB

/// Float32 copies for machines without bf16 products; grows to the largest size requested.
class Widened {
 public:
  /// Rows [begin, begin + count) of a matrix, widened if they are bf16.
  TensorView read(const TensorView& x, int64_t begin, int64_t count) {
    const TensorView rows = x.slice(0, begin, count);
    if (x.dtype == DType::kF32) return rows;
    const TensorView copy = place(count, x.shape[1]);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < count; ++row)
      cpu::widen_row(copy.f32() + row * x.shape[1], rows.as<bf16>() + row * x.stride[0],
                     x.shape[1]);
    return copy;
  }
  TensorView place(int64_t rows, int64_t columns) {
    if (static_cast<int64_t>(memory_.size()) < rows * columns) memory_.resize(rows * columns);
    return TensorView(memory_.data(), DType::kF32, {rows, columns});
  }

 private:
  std::vector<float> memory_;
};

void round_rows(const TensorView& out, int64_t begin, const TensorView& from) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < from.shape[0]; ++row)
    cpu::round_row(out.as<bf16>() + (begin + row) * out.stride[0],
                   from.f32() + row * from.stride[0], from.shape[1]);
}

/// out [T, O] (+)= x [T, I] weight^T (+ bias).
void multiply_forward(const LibraryTeam& team, const TensorView& out, const TensorView& x,
                      const TensorView& weight, const TensorView& bias, bool accumulate) {
  const int64_t t = x.shape[0], o = weight.shape[0], i = weight.shape[1];
  run(team,
      {t, o, i, row_stride(x), 1, 1, row_stride(weight), row_stride(out), bias.defined(),
       accumulate, x.dtype, out.dtype},
      x.data, weight.data, bias.data, out.data);
}
/// grad_x [T, I] (+)= grad_out [T, O] weight [O, I].
void multiply_backward_input(const LibraryTeam& team, const TensorView& grad_x,
                             const TensorView& grad_out, const TensorView& weight,
                             bool accumulate) {
  const int64_t t = grad_x.shape[0], o = weight.shape[0], i = weight.shape[1];
  run(team,
      {t, i, o, row_stride(grad_out), 1, row_stride(weight), 1, row_stride(grad_x), false,
       accumulate, grad_out.dtype, grad_x.dtype},
      grad_out.data, weight.data, nullptr, grad_x.data);
}
/// grad_weight [O, I] += grad_out^T [O, T] x [T, I].
void multiply_backward_weight(const LibraryTeam& team, const TensorView& grad_weight,
                              const TensorView& grad_out, const TensorView& x) {
  const int64_t t = x.shape[0], o = grad_weight.shape[0], i = grad_weight.shape[1];
  run(team,
      {o, i, t, 1, row_stride(grad_out), row_stride(x), 1, row_stride(grad_weight), false, true,
       x.dtype, DType::kF32},
      grad_out.data, x.data, nullptr, grad_weight.data);
}

/// Widens weight and, block by block, the rows of out and x, and calls multiply(out, x, weight,
/// rows) in float32 on each block.
template <typename Multiply>
void in_widened_blocks(const TensorView& out, const TensorView& x, const TensorView& weight,
                       bool reads_out, Multiply multiply) {
  static thread_local Widened weight_copy, x_copy, out_copy;
  const TensorView whole_weight = weight_copy.read(weight, 0, weight.shape[0]);
  for (int64_t begin = 0; begin < x.shape[0]; begin += kWidenedRows) {
    const int64_t count = std::min(kWidenedRows, x.shape[0] - begin);
    const bool rounds = out.dtype == DType::kBF16;
    const TensorView block = !rounds || reads_out ? out_copy.read(out, begin, count)
                                                  : out_copy.place(count, out.shape[1]);
    multiply(block, x_copy.read(x, begin, count), whole_weight);
    if (rounds) round_rows(out, begin, block);
  }
}

float value(float x) { return x; }
float value(bf16 x) { return to_float(x); }

/// bias [O] += column sums of grad [T, O].
template <typename T>
void add_column_sums(float* bias, const T* grad, int64_t t, int64_t o, int64_t stride) {
  // Each thread owns columns, so the order of the sum over tokens does not depend on threads.
  constexpr int64_t kColumns = 64;
#pragma omp parallel for schedule(static)
  for (int64_t begin = 0; begin < o; begin += kColumns) {
    const int64_t width = std::min(kColumns, o - begin);
    float sums[kColumns] = {};
    // Blocks of rows keep the float32 sums short.
    for (int64_t block = 0; block < t; block += 256) {
      float partial[kColumns] = {};
      const int64_t end = std::min(t, block + 256);
      for (int64_t row = block; row < end; ++row) {
        const T* grad_row = grad + row * stride + begin;
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) partial[c] += value(grad_row[c]);
      }
      for (int64_t c = 0; c < width; ++c) sums[c] += partial[c];
    }
    for (int64_t c = 0; c < width; ++c) bias[begin + c] += sums[c];
  }
}

}  // namespace

void linear_forward(Context& context, const TensorView& out, const TensorView& x,
                    const TensorView& weight, const TensorView& bias, bool accumulate) {
  const LibraryTeam team(context.threads());
  if (runs_as_is(context, x, out)) {
    multiply_forward(team, out, x, weight, bias, accumulate);
    return;
  }
  static thread_local Widened bias_copy;
  const TensorView wide_bias =
      bias.defined() ? bias_copy.read(bias.view({1, bias.elements()}), 0, 1) : TensorView{};
  in_widened_blocks(
      out, x, weight, accumulate,
      [&](const TensorView& out_rows, const TensorView& x_rows, const TensorView& wide_weight) {
        multiply_forward(team, out_rows, x_rows, wide_weight, wide_bias, accumulate);
      });
}

void linear_backward_input(Context& context, const TensorView& grad_x, const TensorView& grad_out,
                           const TensorView& weight, bool accumulate) {
  const LibraryTeam team(context.threads());
  if (runs_as_is(context, grad_out, grad_x)) {
    multiply_backward_input(team, grad_x, grad_out, weight, accumulate);
    return;
  }
  in_widened_blocks(grad_x, grad_out, weight, accumulate,
                    [&](const TensorView& grad_x_rows, const TensorView& grad_out_rows,
                        const TensorView& wide_weight) {
                      multiply_backward_input(team, grad_x_rows, grad_out_rows, wide_weight,
                                              accumulate);
                    });
}

void linear_backward_weight(Context& context, const TensorView& grad_weight,
                            const TensorView& grad_bias, const TensorView& grad_out,
                            const TensorView& x) {
  const LibraryTeam team(context.threads());
  if (runs_as_is(context, x, grad_weight)) {
    multiply_backward_weight(team, grad_weight, grad_out, x);
  } else {
    static thread_local Widened grad_out_copy, x_copy;
    for (int64_t begin = 0; begin < x.shape[0]; begin += kWidenedRows) {
      const int64_t count = std::min(kWidenedRows, x.shape[0] - begin);
      multiply_backward_weight(team, grad_weight, grad_out_copy.read(grad_out, begin, count),
                               x_copy.read(x, begin, count));
    }
  }
  if (!grad_bias.defined()) return;
  const int64_t t = x.shape[0], o = grad_weight.shape[0];
  if (grad_out.dtype == DType::kBF16)
    add_column_sums(grad_bias.f32(), grad_out.as<bf16>(), t, o, grad_out.stride[0]);
  else
    add_column_sums(grad_bias.f32(), grad_out.f32(), t, o, grad_out.stride[0]);
}

}  // namespace longnet::onednn
