// Dispatcher of embedding.h: checks, then the twin of the device.
#include "kernels/embedding/embedding.h"

#include "core/bf16.h"
#include "kernels/embedding/embedding_cpu.h"
#include "kernels/embedding/embedding_cuda.h"

namespace longnet {
namespace {

void check(const TensorView& rows, const TensorView& table, const TensorView& tokens) {
  LN_CHECK(rows.rank == 2 && table.rank == 2 && rows.shape[1] == table.shape[1],
           "rows {} of table {}", rows.describe(), table.describe());
  LN_CHECK(tokens.elements() == rows.shape[0] && tokens.contiguous() && rows.contiguous() &&
               table.contiguous(),
           "tokens {} for rows {}", tokens.describe(), rows.describe());
  LN_CHECK(is_float_type(rows.dtype) && is_float_type(table.dtype),
           "rows {} of table {}: wanted f32 or bf16", rows.describe(), table.describe());
}

std::span<const int64_t> host_tokens(const TensorView& tokens) {
  return {tokens.as<int64_t>(), static_cast<size_t>(tokens.elements())};
}

}  // namespace

void check_tokens(std::span<const int64_t> tokens, int64_t vocabulary) {
  for (size_t t = 0; t < tokens.size(); ++t)
    if (tokens[t] < 0 || tokens[t] >= vocabulary)
      throw Error(
          "token {} at place {} is outside the vocabulary; allowed: 0 to {} "
          "(model.vocab_size)",
          tokens[t], t, vocabulary - 1);
}

void embedding_forward(Context& context, const TensorView& out, const TensorView& table,
                       const TensorView& tokens) {
  check(out, table, tokens);
  if (context.counting() || out.elements() == 0) return;
  if (context.device().type == DeviceType::kCUDA)
    return cuda::embedding_forward(context, out, table, tokens);
  check_tokens(host_tokens(tokens), table.shape[0]);
  cpu::embedding_forward(context, out, table, tokens);
}

int64_t embedding_backward_workspace_bytes(const Context& context, int64_t tokens,
                                           int64_t vocabulary, int64_t dim) {
  if (context.device().type == DeviceType::kCPU) return 0;
  return cuda::embedding_backward_workspace_bytes(tokens, vocabulary, dim);
}

void embedding_backward(Context& context, const TensorView& grad_table, const TensorView& grad_out,
                        const TensorView& tokens, void* workspace) {
  check(grad_out, grad_table, tokens);
  LN_CHECK(grad_table.dtype == DType::kF32, "grad_table {}: sums over tokens are f32",
           grad_table.describe());
  if (context.counting() || grad_out.elements() == 0) return;
  if (context.device().type == DeviceType::kCUDA) {
    LN_CHECK(workspace != nullptr, "no workspace");
    return cuda::embedding_backward(context, grad_table, grad_out, tokens, workspace);
  }
  check_tokens(host_tokens(tokens), grad_table.shape[0]);
  cpu::embedding_backward(context, grad_table, grad_out, tokens);
}

}  // namespace longnet
