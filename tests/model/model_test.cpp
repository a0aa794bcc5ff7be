// The model on one rank against the golden files, against finite differences, and its invariants.
#include <gtest/gtest.h>

#include "kernels/cast/cast.h"
#include "support/compare.h"
#include "support/model_case.h"

namespace longnet::test {
namespace {

class GoldenModel : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenModel, LossLogitsAndGradients) {
  const SafetensorsFile file(golden_path(GetParam()));
  const ModelConfig config = model_config(nlohmann::json::parse(file.metadata().at("case")));
  const std::vector<int64_t>& shape = file.entry("tokens").shape;
  const int64_t batch = shape[0], n = shape[1] - 1;
  const ParameterLayout layout(config);
  NoExchange exchange;
  ModelOnRank rank(config,
                   SequencePlan(n, 1, 0, config.heads, config.branches, config.head_offset_mode()),
                   batch, exchange, golden_parameters(file, layout));
  std::vector<int64_t> tokens, targets;
  split_tokens(file.integers("tokens"), batch, 0, n, tokens, targets);
  const CrossEntropyResult result = rank.run(tokens, targets, 1.0 / (batch * n));
  EXPECT_EQ(result.count, batch * n);
  EXPECT_NEAR(result.loss_sum / result.count, file.floats("loss")[0], 1e-5);
  EXPECT_LE(error_ratio(difference(rank.logits, file.floats("logits"))), 1.0);

  double largest = 0;  // G
  for (const ParameterInfo& info : layout.parameters())
    for (float g : file.floats("grad." + info.name))
      largest = std::max(largest, std::abs(double(g)));
  double worst = 0;
  for (const ParameterInfo& info : layout.parameters()) {
    const std::vector<float> expected = file.floats("grad." + info.name);
    const double ratio = error_ratio(
        difference(rank.gradients.data() + info.offset, expected.data(), info.elements), largest);
    EXPECT_LE(ratio, 1.0) << info.name;
    worst = std::max(worst, ratio);
  }
  RecordProperty("worst_gradient_error_share", std::to_string(worst));
  printf("  %s: worst gradient error %.3f of the allowance\n", GetParam(), worst);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenModel,
                         ::testing::Values("model-magneto-xpos", "model-preln-rope-tied",
                                           "model-parallel-swiglu-qknorm", "model-encoder"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

ModelConfig tiny_config() {
  ModelConfig config;
  config.vocab_size = 19;
  config.dim = 32;
  config.layers = 2;
  config.heads = 4;
  config.ffn_dim = 48;
  config.branches = {{8, 1}, {16, 2}, {40, 3}};
  return config;
}

SequencePlan one_rank(const ModelConfig& config, int64_t tokens) {
  return SequencePlan(tokens, 1, 0, config.heads, config.branches, config.head_offset_mode());
}

std::vector<float> initial_parameters(const ParameterLayout& layout, uint64_t seed) {
  Context context;
  std::vector<float> flat(layout.elements());
  initialise_parameters(context, layout, flat_view(flat), seed);
  // Unit norms and zero biases would hide mistakes in their use.
  const std::vector<float> noise = random_values(layout.elements(), seed + 99, 0.05f);
  for (const ParameterInfo& info : layout.parameters())
    if (!info.is_matrix)
      for (int64_t i = 0; i < info.elements; ++i) flat[info.offset + i] += noise[info.offset + i];
  return flat;
}

std::vector<int64_t> random_tokens(int64_t n, int64_t vocab, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::vector<int64_t> tokens(n);
  for (int64_t& t : tokens) t = static_cast<int64_t>(generator() % vocab);
  return tokens;
}

// Every option once: the directional derivative along a random direction agrees with the gradient.
struct Variant {
  const char* name;
  void (*change)(ModelConfig&);
};
class ModelVariant : public ::testing::TestWithParam<Variant> {};

TEST_P(ModelVariant, DirectionalDerivative) {
  ModelConfig config = tiny_config();
  GetParam().change(config);
  const ParameterLayout layout(config);
  const int64_t batch = 2, n = 37;
  NoExchange exchange;
  const std::vector<float> start = initial_parameters(layout, 3);
  std::vector<int64_t> tokens, targets;
  split_tokens(random_tokens(batch * (n + 1), config.vocab_size, 5), batch, 0, n, tokens, targets);
  targets[4] = -1;  // one ignored target
  const auto loss_at = [&](const std::vector<float>& flat, std::vector<float>* gradients) {
    ModelOnRank rank(config, one_rank(config, n), batch, exchange, flat);
    const CrossEntropyResult result = rank.run(tokens, targets, 1.0);
    EXPECT_EQ(result.count, batch * n - 1);
    if (gradients) *gradients = rank.gradients;
    return result.loss_sum;
  };
  std::vector<float> gradients;
  loss_at(start, &gradients);
  // Along the gradient itself the derivative is |g|^2 / |g|: large against float32 noise.
  double norm = 0;
  for (float g : gradients) norm += double(g) * g;
  norm = std::sqrt(norm);
  const double step = 2e-3;
  std::vector<float> plus = start, minus = start;
  for (size_t i = 0; i < start.size(); ++i) {
    plus[i] += static_cast<float>(step * gradients[i] / norm);
    minus[i] -= static_cast<float>(step * gradients[i] / norm);
  }
  const double measured = (loss_at(plus, nullptr) - loss_at(minus, nullptr)) / (2 * step);
  EXPECT_NEAR(measured, norm, 5e-3 * norm);
}

// With one block's activations shared by all, every bit of loss, logits and gradients stays.
TEST_P(ModelVariant, RecomputationChangesNoBit) {
  ModelConfig config = tiny_config();
  config.layers = 3;
  GetParam().change(config);
  const ParameterLayout layout(config);
  const int64_t batch = 2, n = 37;
  NoExchange exchange;
  std::vector<int64_t> tokens, targets;
  split_tokens(random_tokens(batch * (n + 1), config.vocab_size, 5), batch, 0, n, tokens, targets);
  const std::vector<float> start = initial_parameters(layout, 3);
  ModelOnRank kept(config, one_rank(config, n), batch, exchange, start);
  ModelOnRank again(config, one_rank(config, n), batch, exchange, start, {.recompute = true});
  // Twice, so that gradients also add up to what they did.
  for (int pass = 0; pass < 2; ++pass) {
    EXPECT_EQ(again.run(tokens, targets, 1.0).loss_sum, kept.run(tokens, targets, 1.0).loss_sum);
    EXPECT_EQ(again.logits, kept.logits);
    EXPECT_EQ(again.gradients, kept.gradients);
  }
  // The backward has written over what the forward kept.
  const TensorView target_view(targets.data(), DType::kI64, {batch, n});
  std::vector<float> grad_hidden(batch * n * config.dim);
  for (LongNet* model : {&kept.model, &again.model}) {
    EXPECT_THROW(model->loss_and_backward(target_view, 0.5), Error);
    EXPECT_THROW(model->backward_hidden(flat_view(grad_hidden)), Error);
    EXPECT_THROW(model->loss(target_view), Error);
    EXPECT_THROW(model->hidden(), Error);
    EXPECT_THROW(model->attended_inputs(0), Error);
  }
  EXPECT_EQ(again.gradients, kept.gradients);
  // What is computed twice counts apart: two of three blocks in each step; at most a forward's
  // third of all work, less what only feeds outputs.
  const Work once = kept.context.work(), twice = again.context.work();
  EXPECT_EQ(twice.matmul_flops, once.matmul_flops);
  EXPECT_EQ(twice.attention_flops, once.attention_flops);
  EXPECT_EQ(once.recomputed_flops, 0);
  EXPECT_GT(twice.recomputed_flops, 0);
  EXPECT_LT(twice.recomputed_flops, (once.matmul_flops + once.attention_flops) / 3);
  EXPECT_LT(again.activations.bytes(), 2 * kept.activations.bytes() / 3);
  EXPECT_LE(again.workspace.bytes(), kept.workspace.bytes());
  EXPECT_THROW(again.model.attended_inputs(0), Error);
}

// Feed-forward layers in parts of rows: the same forward (to the bit where a row of oneDNN's
// products does not depend on the number of rows, as with AVX-512), gradients that differ by the
// order of float32 sums over rows (66 eps of the terms' magnitude, far within the tests' 1e-5 of G
// / 10).
TEST_P(ModelVariant, FeedForwardInPartsOfRows) {
  ModelConfig config = tiny_config();
  config.layers = 3;
  GetParam().change(config);
  const ParameterLayout layout(config);
  const int64_t batch = 2, n = 37;  // 74 rows: four parts of 15 and one of 14
  NoExchange exchange;
  std::vector<int64_t> tokens, targets;
  split_tokens(random_tokens(batch * (n + 1), config.vocab_size, 5), batch, 0, n, tokens, targets);
  std::vector<float> start = initial_parameters(layout, 3);
  std::vector<bf16> rounded(start.size());
  const TensorView low(rounded.data(), DType::kBF16, {layout.elements()});
  Context context;
  cast(context, low, flat_view(start));
  for (const TensorView& matrices : {TensorView{}, low}) {
    SCOPED_TRACE(matrices.defined() ? "bf16" : "f32");
    ModelOnRank whole(config, one_rank(config, n), batch, exchange, start,
                      {.recompute = true, .matrices = matrices});
    ModelOnRank parts(config, one_rank(config, n), batch, exchange, start,
                      {.recompute = true, .recompute_rows = 16, .matrices = matrices});
    const bool same_rows = detect_isa() == Isa::kAvx512;
    // Where rows differ in a last bit, that may carry values over to the next bf16, which are 2^-8
    // apart.
    const double tolerance = matrices.defined() && !same_rows ? 0x1p-7 : 1e-5;
    for (int pass = 0; pass < 2; ++pass) {
      const double loss = parts.run(tokens, targets, 1.0).loss_sum,
                   expected = whole.run(tokens, targets, 1.0).loss_sum;
      if (same_rows) {
        EXPECT_EQ(loss, expected);
        EXPECT_EQ(parts.logits, whole.logits);
      } else {
        EXPECT_NEAR(loss, expected, tolerance / 10 * expected);
        EXPECT_LE(error_ratio(difference(parts.logits, whole.logits), 0, tolerance), 1.0);
      }
    }
    double largest = 0;
    for (float g : whole.gradients) largest = std::max(largest, std::abs(double(g)));
    for (const ParameterInfo& info : layout.parameters())
      EXPECT_LE(error_ratio(difference(parts.gradients.data() + info.offset,
                                       whole.gradients.data() + info.offset, info.elements),
                            largest, tolerance),
                1.0)
          << info.name;
    EXPECT_LT(parts.activations.bytes(), whole.activations.bytes());
    EXPECT_LT(parts.workspace.bytes(), whole.workspace.bytes());
    // All three blocks' fc1 (and gate) are computed again, not only two.
    const int64_t fc1 =
        2 * 2 * batch * n * config.dim * config.ffn_dim * (config.activation == "swiglu" ? 2 : 1);
    EXPECT_EQ(parts.context.work().recomputed_flops,
              whole.context.work().recomputed_flops + static_cast<double>(fc1));
    EXPECT_EQ(parts.context.work().matmul_flops, whole.context.work().matmul_flops);
  }
}

/// An arena whose memory a test can reach.
struct OpenArena {
  Arena arena{"test"};
  int64_t size;
  char* begin;
  explicit OpenArena(int64_t bytes) : size(bytes) {
    arena.reserve(bytes + kAlignment);
    begin = static_cast<char*>(arena.allocate_bytes(kAlignment)) + kAlignment;
  }
  /// NaN in every type, in bytes [from, to).
  void poison(int64_t from, int64_t to) { std::memset(begin + from, 0xff, to - from); }
  void poison() { poison(0, size); }
};

// Nothing is read that this step has not written: with NaN in all memory before the forward, in the
// workspace between forward and backward, and after each layer in whatever must be dead (the
// workspace but for the stream's gradient; with recomputation every activation but the blocks'
// inputs, which come first), all gradients keep their bits.
TEST_P(ModelVariant, ReadsNothingThatAnotherPhaseLeft) {
  ModelConfig config = tiny_config();
  config.layers = 3;
  GetParam().change(config);
  const ParameterLayout layout(config);
  const int64_t batch = 2, n = 37, rows = batch * n;
  NoExchange exchange;
  std::vector<int64_t> tokens, targets;
  split_tokens(random_tokens(batch * (n + 1), config.vocab_size, 5), batch, 0, n, tokens, targets);
  std::vector<float> start = initial_parameters(layout, 3);
  std::vector<float> vectors = random_values(rows * config.dim, 4), grad_vectors(vectors.size());
  const std::initializer_list<int64_t> shape = {batch, n, config.dim};
  std::vector<bf16> rounded(start.size());
  const TensorView low(rounded.data(), DType::kBF16, {layout.elements()});
  Context context;
  cast(context, low, flat_view(start));
  for (const TensorView& matrices : {TensorView{}, low})
    for (const LongNetOptions& options :
         {LongNetOptions{.matrices = matrices},
          LongNetOptions{.recompute = true, .matrices = matrices},
          LongNetOptions{.recompute = true, .recompute_rows = 16, .matrices = matrices}}) {
      SCOPED_TRACE(std::string(matrices.defined() ? "bf16" : "f32") +
                   (options.recompute ? ", recompute, parts of " : ", parts of ") +
                   std::to_string(options.recompute_rows));
      ModelOnRank sized(config, one_rank(config, n), batch, exchange, start, options);
      OpenArena activations(sized.activations.bytes()), workspace(sized.workspace.bytes());
      std::vector<float> gradients(layout.elements());
      LongNet model(context, config, one_rank(config, n), batch, layout, flat_view(start),
                    flat_view(gradients), exchange, {activations.arena, workspace.arena}, options);
      const auto step = [&](const auto& between, const LongNet::GradientsReady& ready) {
        std::fill(gradients.begin(), gradients.end(), 0.0f);
        model.forward_vectors(TensorView(vectors.data(), DType::kF32, shape));
        between();
        model.loss_and_backward(TensorView(targets.data(), DType::kI64, {batch, n}), 1.0 / rows,
                                ready, TensorView(grad_vectors.data(), DType::kF32, shape));
        return gradients;
      };
      const std::vector<float> expected = step([] {}, {});
      const std::vector<float> expected_vectors = grad_vectors;
      // Where the stream's gradient lies: what the backward has handed out as grad_vectors.
      const int64_t bytes = rows * config.dim * static_cast<int64_t>(sizeof(float));
      int64_t stream = -1;
      for (int64_t at = 0; at + bytes <= workspace.size; at += kAlignment)
        if (std::memcmp(workspace.begin + at, grad_vectors.data(), bytes) == 0) stream = at;
      ASSERT_GE(stream, 0);
      const int64_t inputs = config.layers * ((bytes + kAlignment - 1) / kAlignment * kAlignment);
      activations.poison();
      workspace.poison();
      const std::vector<float> actual =
          step([&] { workspace.poison(); },
               [&](const ParameterRange& range) {
                 workspace.poison(0, stream);
                 workspace.poison(stream + bytes, workspace.size);
                 if (options.recompute && range.begin != layout.head_range().begin)
                   activations.poison(inputs, activations.size);
               });
      EXPECT_EQ(actual, expected);
      EXPECT_EQ(grad_vectors, expected_vectors);
    }
}

INSTANTIATE_TEST_SUITE_P(
    Options, ModelVariant,
    ::testing::Values(Variant{"sub_ln_xpos", [](ModelConfig&) {}},
                      Variant{"pre_ln_rope",
                              [](ModelConfig& c) {
                                c.norm = "pre_ln";
                                c.position = "rope";
                              }},
                      Variant{"parallel_sub_ln", [](ModelConfig& c) { c.block = "parallel"; }},
                      Variant{"parallel_pre_ln",
                              [](ModelConfig& c) {
                                c.block = "parallel";
                                c.norm = "pre_ln";
                              }},
                      Variant{"swiglu", [](ModelConfig& c) { c.activation = "swiglu"; }},
                      Variant{"swiglu_no_bias",
                              [](ModelConfig& c) {
                                c.activation = "swiglu";
                                c.bias = false;
                              }},
                      Variant{"qk_norm", [](ModelConfig& c) { c.qk_norm = true; }},
                      Variant{"tied", [](ModelConfig& c) { c.tie_embeddings = true; }},
                      Variant{"full_attention",
                              [](ModelConfig& c) {
                                c.causal = false;
                                c.position = "none";
                              }},
                      Variant{"blocked_offsets",
                              [](ModelConfig& c) { c.head_offset = "blocked"; }}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Model, ParameterNamesAndInitialisation) {
  ModelConfig config = tiny_config();
  config.qk_norm = true;
  config.activation = "swiglu";
  const ParameterLayout layout(config);
  for (const char* name :
       {"embed_tokens.weight", "layers.1.self_attn_layer_norm.bias",
        "layers.0.self_attn.q_norm.weight", "layers.1.self_attn.inner_attn_ln.weight",
        "layers.0.ffn.gate.bias", "layers.0.ffn.fc2.weight", "layers.1.ffn.ffn_layernorm.bias",
        "layers.0.final_layer_norm.weight", "layer_norm.weight", "output_projection.weight"})
    EXPECT_TRUE(layout.contains(name)) << name;
  Context context;
  std::vector<float> flat(layout.elements(), 7.0f), again(layout.elements());
  initialise_parameters(context, layout, flat_view(flat), 42);
  initialise_parameters(context, layout, flat_view(again), 42);
  EXPECT_EQ(flat, again);
  const auto largest = [&](const std::string& name) {
    const ParameterInfo& info = layout.find(name);
    float m = 0;
    for (int64_t i = 0; i < info.elements; ++i) m = std::max(m, std::abs(flat[info.offset + i]));
    return m;
  };
  const double xavier = std::sqrt(6.0 / 64), magneto = std::sqrt(std::log(4.0));
  EXPECT_NEAR(largest("layers.0.self_attn.q_proj.weight"), xavier, 0.01 * xavier);
  EXPECT_NEAR(largest("layers.0.self_attn.v_proj.weight"), magneto * xavier, 0.01 * xavier);
  EXPECT_EQ(largest("layers.0.self_attn.v_proj.bias"), 0.0f);
  EXPECT_EQ(largest("layer_norm.weight"), 1.0f);
  // Ranges tile the buffer front to back.
  int64_t reached = layout.head_range().end;
  EXPECT_EQ(layout.head_range().begin, 0);
  for (int64_t layer = config.layers - 1; layer >= 0; --layer) {
    EXPECT_EQ(layout.layer_range(layer).begin, reached);
    reached = layout.layer_range(layer).end;
  }
  EXPECT_EQ(layout.embedding_range().begin, reached);
  EXPECT_EQ(layout.embedding_range().end, layout.elements());
  EXPECT_THROW(layout.find("layers.9.nothing"), Error);
}

TEST(Model, VectorsInPlaceOfTokens) {
  const ModelConfig config = tiny_config();
  const ParameterLayout layout(config);
  const int64_t n = 21;
  NoExchange exchange;
  ModelOnRank rank(config, one_rank(config, n), 1, exchange, initial_parameters(layout, 8));
  std::vector<int64_t> tokens, targets;
  split_tokens(random_tokens(n + 1, config.vocab_size, 6), 1, 0, n, tokens, targets);
  const CrossEntropyResult by_token = rank.run(tokens, targets, 1.0 / n);
  const std::vector<float> token_gradients = rank.gradients;
  // Passes the embedded vectors directly; their scattered gradient must be the embedding's.
  const TensorView table = layout.view(flat_view(rank.parameters), "embed_tokens.weight");
  std::vector<float> vectors, grad_vectors(n * config.dim);
  for (int64_t t : tokens)
    vectors.insert(vectors.end(), table.f32() + t * config.dim, table.f32() + (t + 1) * config.dim);
  std::fill(rank.gradients.begin(), rank.gradients.end(), 0.0f);
  rank.model.forward_vectors(TensorView(vectors.data(), DType::kF32, {1, n, config.dim}));
  const CrossEntropyResult by_vector = rank.model.loss_and_backward(
      TensorView(targets.data(), DType::kI64, {1, n}), 1.0 / n, {},
      TensorView(grad_vectors.data(), DType::kF32, {1, n, config.dim}));
  EXPECT_EQ(by_token.loss_sum, by_vector.loss_sum);
  const ParameterInfo& info = layout.find("embed_tokens.weight");
  std::vector<float> scattered(info.elements, 0.0f);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < config.dim; ++c)
      scattered[tokens[i] * config.dim + c] += grad_vectors[i * config.dim + c];
  EXPECT_LE(error_ratio(
                difference(scattered.data(), token_gradients.data() + info.offset, info.elements)),
            1.0);
}

}  // namespace
}  // namespace longnet::test
