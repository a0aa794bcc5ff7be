// Dispatcher of embedding.h: checks, then the CPU twin.
#include "kernels/embedding/embedding.h"

#include "core/bf16.h"
#include "kernels/embedding/embedding_cpu.h"

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

void check_range(const TensorView& tokens, int64_t vocabulary) {
  const int64_t* token = tokens.as<int64_t>();
  for (int64_t t = 0; t < tokens.elements(); ++t)
    if (token[t] < 0 || token[t] >= vocabulary)
      throw Error(
          "token {} at place {} is outside the vocabulary; allowed: 0 to {} "
          "(model.vocab_size)",
          token[t], t, vocabulary - 1);
}

}  // namespace

void embedding_forward(Context& context, const TensorView& out, const TensorView& table,
                       const TensorView& tokens) {
  check(out, table, tokens);
  if (context.counting() || out.elements() == 0) return;
  check_range(tokens, table.shape[0]);
  cpu::embedding_forward(context, out, table, tokens);
}

void embedding_backward(Context& context, const TensorView& grad_table, const TensorView& grad_out,
                        const TensorView& tokens) {
  check(grad_out, grad_table, tokens);
  LN_CHECK(grad_table.dtype == DType::kF32, "grad_table {}: sums over tokens are f32",
           grad_table.describe());
  if (context.counting() || grad_out.elements() == 0) return;
  check_range(tokens, grad_table.shape[0]);
  cpu::embedding_backward(context, grad_table, grad_out, tokens);
}

}  // namespace longnet
