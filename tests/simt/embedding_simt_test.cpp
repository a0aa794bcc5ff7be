// CUDA embedding against the reference: tokens that repeat a lot and rarely, runs over many pieces,
// vocabularies of one, two and three digits, tokens outside the table.
#include "kernels/embedding/embedding.h"
#include "simt/device_values.h"
#include "simt/support.h"
#include "support/floats.h"

namespace longnet::simt_test {
namespace {

using test::difference;
using test::error_ratio;
using test::Floats;
using test::random_values;

struct Case {
  int64_t rows, vocabulary, width;
  int64_t heavy;  // of 10 tokens so many are token 0
};

/// grad_table from the device.
std::vector<float> device_gradient(const Case& c, const std::vector<int64_t>& tokens,
                                   DType row_type) {
  Context context = gpu_context();
  const DeviceValues d_tokens(tokens), grad_out(row_type, random_values(c.rows * c.width, 2)),
      grad(DType::kF32, random_values(c.vocabulary * c.width, 4));
  const int64_t bytes = embedding_backward_workspace_bytes(context, c.rows, c.vocabulary, c.width);
  const DeviceValues workspace(DType::kF32, (bytes + 3) / 4);
  embedding_backward(context, grad.view({c.vocabulary, c.width}), grad_out.view({c.rows, c.width}),
                     d_tokens.flat(), workspace.data());
  context.wait();
  return grad.floats();
}

std::vector<int64_t> tokens_of(const Case& c) {
  std::vector<int64_t> tokens(c.rows);
  std::mt19937_64 random(3);
  for (int64_t& t : tokens)
    t = static_cast<int64_t>(random() % 10) < c.heavy ? 0 : random() % c.vocabulary;
  return tokens;
}

void check_backward(const Case& c, DType row_type) {
  std::vector<int64_t> tokens = tokens_of(c);
  Floats grad_out(row_type, random_values(c.rows * c.width, 2));
  std::vector<float> grad = random_values(c.vocabulary * c.width, 4);
  reference::embedding_backward(TensorView(grad.data(), DType::kF32, {c.vocabulary, c.width}),
                                grad_out.view({c.rows, c.width}),
                                TensorView(tokens.data(), DType::kI64, {c.rows}));
  const std::vector<float> got = device_gradient(c, tokens, row_type);
  EXPECT_LE(error_ratio(difference(got, grad)), 1);
  EXPECT_EQ(device_gradient(c, tokens, row_type), got);
}

const Case kCases[] = {{1, 1, 1, 0},       {7, 3, 5, 0},       {600, 20, 130, 0},
                       {1000, 256, 96, 2}, {3000, 300, 12, 5}, {100, 70000, 4, 0},
                       {2500, 1, 8, 0},    {1100, 255, 136, 9}};

TEST(EmbeddingSimt, AgreesWithReference) {
  int index = 0;
  for (const Case& c : kCases)
    for (const DType row_type : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(
          fmt::format("{} of {} x {} {}", c.rows, c.vocabulary, c.width, dtype_name(row_type)));
      ++index;
      simt::set_order(kOrders[index % 4], uint64_t(index));
      check_backward(c, row_type);
      for (const DType table_type : {DType::kF32, DType::kBF16}) {
        std::vector<int64_t> tokens = tokens_of(c);
        const std::vector<float> values = random_values(c.vocabulary * c.width, 1);
        Floats table(table_type, values), out(row_type, std::vector<float>(c.rows * c.width));
        reference::embedding_forward(out.view({c.rows, c.width}),
                                     table.view({c.vocabulary, c.width}),
                                     TensorView(tokens.data(), DType::kI64, {c.rows}));
        Context context = gpu_context();
        const DeviceValues d_table(table_type, values), d_out(row_type, c.rows * c.width),
            d_tokens(tokens);
        embedding_forward(context, d_out.view({c.rows, c.width}),
                          d_table.view({c.vocabulary, c.width}), d_tokens.flat());
        context.wait();
        EXPECT_EQ(d_out.floats(), out.floats());
      }
    }
  simt::set_order(simt::Order::kAscending, 1);
}

/// Token 1 and, where given, others.
std::vector<float> forward_with(const std::vector<int64_t>& tokens) {
  Context context = gpu_context();
  const int64_t rows = static_cast<int64_t>(tokens.size());
  const DeviceValues table(DType::kF32, random_values(12, 1)), out(DType::kF32, rows * 4);
  const DeviceValues d_tokens(tokens);
  embedding_forward(context, out.view({rows, 4}), table.view({3, 4}), d_tokens.flat());
  context.wait();
  return out.floats();
}

TEST(EmbeddingSimt, TokensOutsideTheTableGiveNaNAndNoGradient) {
  const std::vector<float> out = forward_with({1, -1, 3, 2});
  for (int i = 0; i < 16; ++i) EXPECT_EQ(std::isnan(out[i]), i / 4 == 1 || i / 4 == 2) << i;
  const Case c{4, 3, 4, 0};
  std::vector<float> want = random_values(12, 4), grad_out = random_values(16, 2);
  for (int i = 0; i < 4; ++i) want[4 + i] += grad_out[i], want[8 + i] += grad_out[12 + i];
  EXPECT_EQ(device_gradient(c, {1, -1, 3, 2}, DType::kF32), want);
  EXPECT_THROW(check_tokens(std::vector<int64_t>{1, 3}, 3), Error);
  EXPECT_NO_THROW(check_tokens(std::vector<int64_t>{1, 2}, 3));
}

TEST(EmbeddingSimt, ReadOutsideTheTableIsFound) {
  if (!simt::address_checked()) GTEST_SKIP() << "only in the ASan build";
  EXPECT_DEATH(
      {
        const simt::Defect defect(65);
        forward_with({1, 3});
      },
      "heap-buffer-overflow");
}

TEST(EmbeddingSimt, MissingBarrierIsFound) {
  if (!simt::race_checked()) GTEST_SKIP() << "only in the race build";
  const Case c{600, 20, 32, 0};
  const std::string found =
      found_with_defect(66, [&] { device_gradient(c, tokens_of(c), DType::kF32); });
  EXPECT_NE(found.find("embedding_cuda.cu:"), std::string::npos) << found;
}

TEST(EmbeddingSimt, RunAddedTwiceIsFound) {
  const Case c{2500, 1, 8, 0};
  const std::vector<float> right = device_gradient(c, tokens_of(c), DType::kF32);
  const simt::Defect defect(67);
  // Every piece of the run adds it up from there on: a wrong sum, and in the race build a finding.
  try {
    const std::vector<float> got = device_gradient(c, tokens_of(c), DType::kF32);
    EXPECT_GT(error_ratio(difference(got, right)), 1);
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("race"), std::string::npos);
  }
}

}  // namespace
}  // namespace longnet::simt_test
