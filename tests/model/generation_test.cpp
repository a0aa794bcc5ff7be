// Incremental generation gives the logits of the whole forward; sampling follows its options.
#include "model/generation.h"

#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/model_case.h"

namespace longnet::test {
namespace {

ModelConfig config_with(const std::string& position, bool qk_norm) {
  ModelConfig config;
  config.vocab_size = 23;
  config.dim = 48;
  config.layers = 2;
  config.heads = 3;
  config.ffn_dim = 40;
  config.branches = {{8, 1}, {20, 3}, {64, 5}};  // r does not divide w; heads 0..2 of 5 offsets
  config.position = position;
  config.qk_norm = qk_norm;
  return config;
}

class GenerationMatchesForward
    : public ::testing::TestWithParam<std::tuple<std::string, bool, int64_t>> {};

TEST_P(GenerationMatchesForward, AtEveryToken) {
  const auto [position, qk_norm, prompt_length] = GetParam();
  const ModelConfig config = config_with(position, qk_norm);
  const ParameterLayout layout(config);
  Context context;
  std::vector<float> parameters(layout.elements());
  initialise_parameters(context, layout, flat_view(parameters), 11);
  const int64_t n = 90;  // crosses segment borders of every branch
  std::mt19937_64 random(4);
  std::vector<int64_t> tokens(n);
  for (int64_t& t : tokens) t = static_cast<int64_t>(random() % config.vocab_size);

  NoExchange exchange;
  Arena activations("activations"), workspace("workspace");
  LongNet model(context, config,
                SequencePlan(n, 1, 0, config.heads, config.branches, config.head_offset_mode()), 1,
                layout, flat_view(parameters), {}, exchange, {activations, workspace});
  model.forward(TensorView(tokens.data(), DType::kI64, {1, n}));
  std::vector<float> expected(n * config.vocab_size);
  model.logits(TensorView(expected.data(), DType::kF32, {n, config.vocab_size}), 0);

  Generator generator(context, config, layout, flat_view(parameters));
  std::vector<float> logits =
      generator.prefill(std::span<const int64_t>(tokens).first(prompt_length));
  for (int64_t t = prompt_length - 1; t < n; ++t) {
    if (t >= prompt_length) logits = generator.step(tokens[t]);
    ASSERT_LE(error_ratio(difference(logits.data(), expected.data() + t * config.vocab_size,
                                     config.vocab_size)),
              1.0)
        << "token " << t;
  }
  EXPECT_EQ(generator.tokens(), n);
  // No more than the kept rows of one segment: sum of w / r (rounded up) rows, K and V, per head,
  // layer.
  const int64_t most_rows = 8 + 7 + 13;
  EXPECT_LE(generator.cache_bytes(), 2 * config.layers * most_rows * config.dim * 4);
  EXPECT_GT(generator.cache_bytes(), 0);
}

INSTANTIATE_TEST_SUITE_P(All, GenerationMatchesForward,
                         ::testing::Combine(::testing::Values("xpos", "rope", "none"),
                                            ::testing::Bool(), ::testing::Values(1, 8, 33)));

TEST(Generation, RefusesWhatItCannotDo) {
  ModelConfig config = config_with("none", false);
  config.causal = false;
  const ParameterLayout layout(config);
  Context context;
  std::vector<float> parameters(layout.elements());
  EXPECT_THROW(Generator(context, config, layout, flat_view(parameters)), Error);
  config.causal = true;
  Generator generator(context, config, layout, flat_view(parameters));
  EXPECT_THROW(generator.prefill({}), Error);
}

TEST(Generation, Sampling) {
  const std::vector<float> logits{0.0f, 2.0f, 1.0f, 2.0f};
  EXPECT_EQ(sample_token(logits, {.temperature = 0}, 0), 1);
  std::vector<int> counts(4), top(4);
  for (uint64_t draw = 0; draw < 20000; ++draw) {
    ++counts[sample_token(logits, {.temperature = 1.0, .top_k = 0, .seed = 5}, draw)];
    ++top[sample_token(logits, {.temperature = 1.0, .top_k = 2, .seed = 5}, draw)];
  }
  double total = 0;
  for (float l : logits) total += std::exp(l);
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(counts[i] / 20000.0, std::exp(logits[i]) / total, 0.015);
  EXPECT_EQ(top[0] + top[2], 0);
  EXPECT_EQ(sample_token(logits, {.temperature = 1, .top_k = 0, .seed = 9}, 3),
            sample_token(logits, {.temperature = 1, .top_k = 0, .seed = 9}, 3));
}

}  // namespace
}  // namespace longnet::test
