// Recomputation over ranks: the same bits as with activations kept, and not one byte more is sent.
// Run with 1, 2, 4 and 8 ranks.
#include <gtest/gtest.h>

#include "dist/mesh.h"
#include "kernels/cast/cast.h"
#include "support/compare.h"
#include "support/model_case.h"

namespace longnet::test {
namespace {

struct Variant {
  const char* name;
  void (*change)(ModelConfig&);
};

/// Every option of a block that changes what a backward needs.
const Variant kVariants[] = {
    {"sub_ln_xpos", [](ModelConfig&) {}},
    {"pre_ln_rope",
     [](ModelConfig& c) {
       c.norm = "pre_ln";
       c.position = "rope";
     }},
    {"parallel", [](ModelConfig& c) { c.block = "parallel"; }},
    {"parallel_pre_ln_swiglu",
     [](ModelConfig& c) {
       c.block = "parallel";
       c.norm = "pre_ln";
       c.activation = "swiglu";
     }},
    {"swiglu_qk_norm",
     [](ModelConfig& c) {
       c.activation = "swiglu";
       c.qk_norm = true;
     }},
    {"encoder_blocked",
     [](ModelConfig& c) {
       c.causal = false;
       c.position = "none";
       c.head_offset = "blocked";
     }},
};

TEST(Recompute, SameBitsAndSameTrafficOnEveryRank) {
  const auto world = make_mpi_communicator();
  for (const Variant& variant : kVariants) {
    ModelConfig config;
    config.vocab_size = 23;
    config.dim = 32;
    config.layers = 3;
    config.heads = 4;
    config.ffn_dim = 40;
    // Local, straddling and whole-sequence segments; rows that no rank's length divides.
    config.branches = {{8, 1}, {30, 2}, {90, 3}};
    variant.change(config);
    const int64_t batch = 2, n = 90;
    const SequencePlan plan(n, world->size(), world->rank(), config.heads, config.branches,
                            config.head_offset_mode());
    const ParameterLayout layout(config);
    Context context;
    std::vector<float> parameters(layout.elements());
    initialise_parameters(context, layout, flat_view(parameters), 5);
    std::vector<int64_t> table(batch * (n + 1));
    std::mt19937_64 random(9);
    for (int64_t& t : table) t = static_cast<int64_t>(random() % config.vocab_size);
    std::vector<int64_t> tokens, targets;
    split_tokens(table, batch, plan.local_begin(), plan.local_tokens(), tokens, targets);

    std::vector<float> gradients[2], logits[2];
    double loss[2];
    Traffic traffic[2];
    for (int i = 0; i < 2; ++i) {
      SequenceExchange exchange(*world, plan, batch, config.head_dim());
      ModelOnRank rank(config, plan, batch, exchange, parameters, {.recompute = i == 1});
      loss[i] = rank.run(tokens, targets, 1.0 / (batch * n)).loss_sum;
      gradients[i] = rank.gradients;
      logits[i] = rank.logits;
      traffic[i] = exchange.traffic();
    }
    EXPECT_EQ(loss[0], loss[1]) << variant.name;
    EXPECT_EQ(logits[0], logits[1]) << variant.name;
    EXPECT_EQ(gradients[0], gradients[1]) << variant.name;
    EXPECT_EQ(traffic[0].forward_bytes, traffic[1].forward_bytes) << variant.name;
    EXPECT_EQ(traffic[0].backward_bytes, traffic[1].backward_bytes) << variant.name;
    if (world->size() > 1) {
      EXPECT_GT(traffic[1].forward_bytes, 0) << variant.name;
    }
  }
}

// Feed-forward layers in parts of rows: equal to rounding on every rank. A library may add in
// another order where a product has fewer rows, and in bf16 hidden values may then round the other
// way: their last bit is 2^-8, and two layers add up several of them.
TEST(Recompute, FeedForwardInPartsOnEveryRank) {
  const auto world = make_mpi_communicator();
  for (const Variant& variant : kVariants) {
    ModelConfig config;
    config.vocab_size = 23;
    config.dim = 32;
    config.layers = 2;
    config.heads = 4;
    config.ffn_dim = 40;
    config.branches = {{8, 1}, {30, 2}, {90, 3}};
    variant.change(config);
    const int64_t batch = 2, n = 90;
    const SequencePlan plan(n, world->size(), world->rank(), config.heads, config.branches,
                            config.head_offset_mode());
    const ParameterLayout layout(config);
    Context context;
    std::vector<float> parameters(layout.elements());
    initialise_parameters(context, layout, flat_view(parameters), 5);
    std::vector<bf16> rounded(parameters.size());
    const TensorView low(rounded.data(), DType::kBF16, {layout.elements()});
    cast(context, low, flat_view(parameters));
    std::vector<int64_t> table(batch * (n + 1));
    std::mt19937_64 random(9);
    for (int64_t& t : table) t = static_cast<int64_t>(random() % config.vocab_size);
    std::vector<int64_t> tokens, targets;
    split_tokens(table, batch, plan.local_begin(), plan.local_tokens(), tokens, targets);
    for (const TensorView& matrices : {TensorView{}, low}) {
      std::vector<float> gradients[2], logits[2];
      for (int i = 0; i < 2; ++i) {
        SequenceExchange exchange(*world, plan, batch, config.head_dim());
        ModelOnRank rank(config, plan, batch, exchange, parameters,
                         {.recompute = true,
                          .recompute_rows = i == 0 ? int64_t{65536} : int64_t{7},
                          .matrices = matrices});
        rank.run(tokens, targets, 1.0 / (batch * n));
        gradients[i] = rank.gradients;
        logits[i] = rank.logits;
      }
      const double tolerance = matrices.defined() ? 3e-2 : 1e-5;
      EXPECT_LE(error_ratio(difference(logits[1], logits[0]), 0, tolerance), 1.0) << variant.name;
      double largest = 0;
      for (float g : gradients[0]) largest = std::max(largest, std::abs(double(g)));
      for (const ParameterInfo& info : layout.parameters())
        EXPECT_LE(error_ratio(difference(gradients[1].data() + info.offset,
                                         gradients[0].data() + info.offset, info.elements),
                              largest, tolerance),
                  1.0)
            << variant.name << " " << info.name;
    }
  }
}

}  // namespace
}  // namespace longnet::test
