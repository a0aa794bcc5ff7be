// oneDNN twin of linear.h: three matmul primitives, created once per shape and strides.
//
// Plain (unpacked) layouts: weights change every step, and rows of x and y may be views into wider
// buffers. Sums are float32 inside oneDNN; the bias gradient is a column sum in a fixed order.
#include "kernels/linear/linear_onednn.h"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

namespace longnet::onednn {
namespace {

/// C [m, n] = A [m, k] B [k, n] (+ bias [n]) (+ C); strides in elements.
struct Product {
  int64_t m, n, k;
  int64_t a_row, a_column, b_row, b_column, c_row;
  bool bias, accumulate;
  auto key() const {
    return std::array<int64_t, 10>{m,     n,        k,     a_row, a_column,
                                   b_row, b_column, c_row, bias,  accumulate};
  }
};

dnnl::engine& engine() {
  static dnnl::engine instance(dnnl::engine::kind::cpu, 0);
  return instance;
}

dnnl::memory::desc matrix(int64_t rows, int64_t columns, int64_t row_stride,
                          int64_t column_stride) {
  return {{rows, columns}, dnnl::memory::data_type::f32, {row_stride, column_stride}};
}

struct Primitive {
  dnnl::matmul::primitive_desc description;
  dnnl::matmul matmul;
};

Primitive& primitive_for(const Product& p) {
  static std::mutex mutex;
  static std::map<std::array<int64_t, 10>, Primitive> cache;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = cache.find(p.key());
  if (found != cache.end()) return found->second;
  dnnl::primitive_attr attributes;
  if (p.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
  const auto a = matrix(p.m, p.k, p.a_row, p.a_column);
  const auto b = matrix(p.k, p.n, p.b_row, p.b_column);
  const auto c = matrix(p.m, p.n, p.c_row, 1);
  const dnnl::matmul::desc description =
      p.bias ? dnnl::matmul::desc(a, b, matrix(1, p.n, p.n, 1), c) : dnnl::matmul::desc(a, b, c);
  dnnl::matmul::primitive_desc primitive(description, attributes, engine());
  return cache.emplace(p.key(), Primitive{primitive, dnnl::matmul(primitive)}).first->second;
}

void run(const Product& p, const float* a, const float* b, const float* bias, float* c) {
  Primitive& primitive = primitive_for(p);
  static thread_local dnnl::stream stream(engine());
  const auto memory = [](const dnnl::memory::desc& description, const float* data) {
    return dnnl::memory(description, engine(), const_cast<float*>(data));
  };
  std::unordered_map<int, dnnl::memory> arguments{
      {DNNL_ARG_SRC, memory(primitive.description.src_desc(), a)},
      {DNNL_ARG_WEIGHTS, memory(primitive.description.weights_desc(), b)},
      {DNNL_ARG_DST, memory(primitive.description.dst_desc(), c)}};
  if (p.bias) arguments.emplace(DNNL_ARG_BIAS, memory(primitive.description.bias_desc(), bias));
  primitive.matmul.execute(stream, arguments);
  stream.wait();
}

/// Distance between rows; a matrix of one row may carry any stride, oneDNN wants a sensible one.
int64_t row_stride(const TensorView& view) {
  return view.shape[0] <= 1 ? std::max<int64_t>(view.shape[1], 1) : view.stride[0];
}

}  // namespace

void linear_forward(Context&, const TensorView& out, const TensorView& x, const TensorView& weight,
                    const TensorView& bias, bool accumulate) {
  // out [T, O] = x [T, I] weight^T [I, O]
  const int64_t t = x.shape[0], o = weight.shape[0], i = weight.shape[1];
  run({t, o, i, row_stride(x), 1, 1, row_stride(weight), row_stride(out), bias.defined(),
       accumulate},
      x.f32(), weight.f32(), bias.defined() ? bias.f32() : nullptr, out.f32());
}

void linear_backward_input(Context&, const TensorView& grad_x, const TensorView& grad_out,
                           const TensorView& weight, bool accumulate) {
  // grad_x [T, I] = grad_out [T, O] weight [O, I]
  const int64_t t = grad_x.shape[0], o = weight.shape[0], i = weight.shape[1];
  run({t, i, o, row_stride(grad_out), 1, row_stride(weight), 1, row_stride(grad_x), false,
       accumulate},
      grad_out.f32(), weight.f32(), nullptr, grad_x.f32());
}

void linear_backward_weight(Context&, const TensorView& grad_weight, const TensorView& grad_bias,
                            const TensorView& grad_out, const TensorView& x) {
  // grad_weight [O, I] += grad_out^T [O, T] x [T, I]
  const int64_t t = x.shape[0], o = grad_weight.shape[0], i = grad_weight.shape[1];
  run({o, i, t, 1, row_stride(grad_out), row_stride(x), 1, row_stride(grad_weight), false, true},
      grad_out.f32(), x.f32(), nullptr, grad_weight.f32());
  if (!grad_bias.defined()) return;
  // Each thread owns columns, so the order of the sum over tokens does not depend on threads.
  constexpr int64_t kColumns = 64;
  const float* grad = grad_out.f32();
  float* bias = grad_bias.f32();
#pragma omp parallel for schedule(static)
  for (int64_t begin = 0; begin < o; begin += kColumns) {
    const int64_t width = std::min(kColumns, o - begin);
    float sums[kColumns] = {};
    // Blocks of rows keep the float32 sums short.
    for (int64_t block = 0; block < t; block += 256) {
      float partial[kColumns] = {};
      const int64_t end = std::min(t, block + 256);
      for (int64_t row = block; row < end; ++row) {
        const float* grad_row = grad + row * grad_out.stride[0] + begin;
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) partial[c] += grad_row[c];
      }
      for (int64_t c = 0; c < width; ++c) sums[c] += partial[c];
    }
    for (int64_t c = 0; c < width; ++c) bias[begin + c] += sums[c];
  }
}

}  // namespace longnet::onednn
