// The attention operator with visible ranges (document boundaries): P ranks give what one rank
// gives, outputs and gradients, whatever ranks the documents end on. Without ranges:
// parity_test.cpp.
#include <gtest/gtest.h>

#include <algorithm>

#include "core/no_exchange.h"
#include "dist/mesh.h"
#include "model/dilated_attention_operator.h"
#include "support/compare.h"

namespace longnet::test {
namespace {

constexpr int64_t kBatch = 2, kHeads = 3, kHeadDim = 8, kWidth = kHeads * kHeadDim;

/// This rank's o, grad_q, grad_k, grad_v, [B, L, H, D] each. Inputs depend on (token, seed) alone.
std::vector<std::vector<float>> run(const SequencePlan& plan, KeyValueExchange& exchange,
                                    bool causal, bool limited) {
  const int64_t tokens = plan.tokens(), begin = plan.local_begin(), local = plan.local_tokens();
  std::vector<std::vector<float>> tensors;  // q, k, v, grad_o, o, grad_q, grad_k, grad_v
  for (uint64_t i = 0; i < 8; ++i) {
    const std::vector<float> whole = random_values(kBatch * tokens * kWidth, i + 1);
    std::vector<float> part;
    for (int64_t b = 0; b < kBatch; ++b)
      part.insert(part.end(), whole.begin() + (b * tokens + begin) * kWidth,
                  whole.begin() + (b * tokens + begin + local) * kWidth);
    part.push_back(0);  // an empty shard has an address
    tensors.push_back(std::move(part));
  }
  std::vector<int64_t> first, last;  // documents of 13 tokens in sequence 0, of 20 in sequence 1
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t t = begin; t < begin + local; ++t) {
      const int64_t length = b == 0 ? 13 : 20;
      first.push_back(t / length * length);
      last.push_back(std::min(first.back() + length, tokens) - 1);
    }
  first.push_back(0);
  last.push_back(0);
  Visibility visibility;
  if (limited)
    visibility = {TensorView(first.data(), DType::kI64, {kBatch, local}),
                  TensorView(last.data(), DType::kI64, {kBatch, local})};
  const auto view = [&](int i) {
    return TensorView(tensors[i].data(), DType::kF32, {kBatch, local, kHeads, kHeadDim});
  };
  std::vector<float> lse(kBatch * kHeads * local + 1);
  const TensorView lse_view(lse.data(), DType::kF32, {kBatch, kHeads, local});
  Context context;
  Arena arena("test");
  DilatedAttentionSettings settings;
  settings.head_dim = kHeadDim;
  settings.causal = causal;
  DilatedAttentionOperator attention(context, plan, kBatch, settings, exchange, arena);
  auto saved = attention.make_saved(arena);
  const QueryKeyValue inputs{view(0), view(1), view(2)};
  attention.forward(view(4), lse_view, inputs, saved, visibility);
  attention.backward({view(5), view(6), view(7)}, view(3), view(4), lse_view, inputs, saved,
                     visibility);
  for (auto& tensor : tensors) tensor.pop_back();
  return {tensors[4], tensors[5], tensors[6], tensors[7]};
}

TEST(Attend, VisibleRangesOverRanks) {
  const auto world = make_mpi_communicator();
  for (int64_t tokens : {61, 64, 5})
    for (bool causal : {true, false}) {
      const std::vector<Branch> branches{{16, 1}, {32, 3}, {128, 2}};
      const SequencePlan plan(tokens, world->size(), world->rank(), kHeads, branches,
                              HeadOffset::kInterleaved);
      const SequencePlan alone(tokens, 1, 0, kHeads, branches, HeadOffset::kInterleaved);
      SequenceExchange exchange(*world, plan, kBatch, kHeadDim);
      NoExchange nothing;
      const auto mine = run(plan, exchange, causal, true);
      const auto whole = run(alone, nothing, causal, true);
      if (tokens > 20) {
        EXPECT_NE(whole[0], run(alone, nothing, causal, false)[0]) << "the ranges matter";
      }
      double largest = 0, worst = 0;
      for (int i = 1; i < 4; ++i)
        largest = std::max(largest, difference(whole[i], whole[i]).max_expected);
      for (int i = 0; i < 4; ++i) {
        std::vector<float> expected;
        for (int64_t b = 0; b < kBatch; ++b)
          expected.insert(
              expected.end(), whole[i].begin() + (b * tokens + plan.local_begin()) * kWidth,
              whole[i].begin() + (b * tokens + plan.local_begin() + plan.local_tokens()) * kWidth);
        Difference d = difference(mine[i], expected);
        d.max_expected = difference(whole[i], whole[i]).max_expected;  // of the whole tensor
        worst = std::max(worst, error_ratio(d, i > 0 ? largest : 0));
      }
      world->all_reduce_max({&worst, 1});
      EXPECT_LE(worst, 1.0) << tokens << " tokens, causal " << causal;
    }
}

}  // namespace
}  // namespace longnet::test
