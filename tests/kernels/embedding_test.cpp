// Embedding: CPU twin against the reference; tokens outside the table are refused.
#include "kernels/embedding/embedding.h"

#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/floats.h"

namespace longnet::test {
namespace {

TEST(Embedding, AgreesWithReference) {
  Context context({.device = {}, .threads = 2, .counting = false});
  for (const auto& [rows, vocabulary, width] :
       {std::array<int64_t, 3>{1, 1, 1}, {7, 3, 5}, {600, 20, 130}, {1000, 256, 96}}) {
    std::vector<float> table = random_values(vocabulary * width, 1);
    std::vector<float> grad_out = random_values(rows * width, 2);
    std::vector<int64_t> tokens(rows);
    std::mt19937_64 random(3);
    for (int64_t& t : tokens) t = static_cast<int64_t>(random() % vocabulary);
    const TensorView token_view(tokens.data(), DType::kI64, {rows});
    std::vector<float> out[2], grad_table[2];
    for (int twin = 0; twin < 2; ++twin) {
      out[twin].resize(rows * width);
      grad_table[twin] = random_values(vocabulary * width, 4);
      const TensorView out_view(out[twin].data(), DType::kF32, {rows, width});
      const TensorView table_view(table.data(), DType::kF32, {vocabulary, width});
      const TensorView grad_table_view(grad_table[twin].data(), DType::kF32, {vocabulary, width});
      const TensorView grad_out_view(grad_out.data(), DType::kF32, {rows, width});
      if (twin == 0) {
        reference::embedding_forward(out_view, table_view, token_view);
        reference::embedding_backward(grad_table_view, grad_out_view, token_view);
      } else {
        embedding_forward(context, out_view, table_view, token_view);
        embedding_backward(context, grad_table_view, grad_out_view, token_view);
      }
    }
    EXPECT_EQ(out[0], out[1]);
    EXPECT_LE(error_ratio(difference(grad_table[1], grad_table[0])), 1.0);
  }
}

TEST(Embedding, Bf16AgreesWithReference) {
  Context context({.device = {}, .threads = 2, .counting = false});
  const int64_t rows = 600, vocabulary = 20, width = 130;
  std::vector<int64_t> tokens(rows);
  std::mt19937_64 random(3);
  for (int64_t& t : tokens) t = static_cast<int64_t>(random() % vocabulary);
  const TensorView token_view(tokens.data(), DType::kI64, {rows});
  for (const DType table_type : {DType::kF32, DType::kBF16})
    for (const DType row_type : {DType::kF32, DType::kBF16}) {
      Floats table(table_type, random_values(vocabulary * width, 1));
      Floats grad_out(row_type, random_values(rows * width, 2));
      std::vector<float> out[2], grad_table[2];
      for (int twin = 0; twin < 2; ++twin) {
        Floats out_rows(row_type, std::vector<float>(rows * width));
        Floats grad(DType::kF32, random_values(vocabulary * width, 4));
        const TensorView out_view = out_rows.view({rows, width});
        const TensorView table_view = table.view({vocabulary, width});
        const TensorView grad_view = grad.view({vocabulary, width});
        const TensorView grad_out_view = grad_out.view({rows, width});
        if (twin == 0) {
          reference::embedding_forward(out_view, table_view, token_view);
          reference::embedding_backward(grad_view, grad_out_view, token_view);
        } else {
          embedding_forward(context, out_view, table_view, token_view);
          embedding_backward(context, grad_view, grad_out_view, token_view);
        }
        out[twin] = out_rows.floats();
        grad_table[twin] = grad.floats();
      }
      EXPECT_EQ(out[0], out[1]);
      EXPECT_LE(error_ratio(difference(grad_table[1], grad_table[0])), 1.0);
    }
}

TEST(Embedding, RefusesTokensOutsideTheTable) {
  Context context;
  std::vector<float> table(12), out(8);
  for (int64_t bad : {int64_t{-1}, int64_t{3}}) {
    std::vector<int64_t> tokens{0, bad};
    try {
      embedding_forward(context, TensorView(out.data(), DType::kF32, {2, 4}),
                        TensorView(table.data(), DType::kF32, {3, 4}),
                        TensorView(tokens.data(), DType::kI64, {2}));
      FAIL();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(fmt::format("token {} at place 1", bad)),
                std::string::npos)
          << error.what();
    }
  }
}

}  // namespace
}  // namespace longnet::test
