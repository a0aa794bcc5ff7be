// The definition of embedding.h in double, one thread. Twin: embedding_cpu.cpp.
#include <vector>

#include "core/bf16.h"
#include "kernels/embedding/embedding.h"

namespace longnet::reference {

// 1. forward: a copy
void embedding_forward(const TensorView& out, const TensorView& table, const TensorView& tokens) {
  for (int64_t t = 0; t < out.shape[0]; ++t)
    for (int64_t c = 0; c < out.shape[1]; ++c)
      set_element(out, t * out.shape[1] + c,
                  element_at(table, tokens.as<int64_t>()[t] * out.shape[1] + c));
}

// 2. backward: out[t] = table[token[t]], so the gradient of a row is the sum over its tokens
void embedding_backward(const TensorView& grad_table, const TensorView& grad_out,
                        const TensorView& tokens) {
  const int64_t width = grad_out.shape[1];
  std::vector<double> sums(grad_table.elements());
  for (int64_t t = 0; t < grad_out.shape[0]; ++t)
    for (int64_t c = 0; c < width; ++c)
      sums[tokens.as<int64_t>()[t] * width + c] += element_at(grad_out, t * width + c);
  for (size_t i = 0; i < sums.size(); ++i) grad_table.f32()[i] += static_cast<float>(sums[i]);
}

}  // namespace longnet::reference
