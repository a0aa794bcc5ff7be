// The attention operator on the GPUs of several ranks, keys and values gathered over the stand-in
// of NCCL, against one rank on the CPU: output and gradients, with and without document limits.
#include <gtest/gtest.h>

#include <algorithm>

#include "core/no_exchange.h"
#include "dist/communicator_nccl.h"
#include "dist/mesh.h"
#include "model/dilated_attention_operator.h"
#include "simt/device_values.h"

namespace longnet::simt_test {
namespace {

using test::difference;
using test::Difference;

constexpr int64_t kBatch = 2, kHeads = 3, kHeadDim = 8, kWidth = kHeads * kHeadDim;

/// A tensor on the device of a context, CPU or GPU.
class Values {
 public:
  Values(const Context& context, std::vector<float> values) : host_(std::move(values)) {
    if (context.on_gpu()) gpu_ = std::make_unique<DeviceValues>(DType::kF32, host_);
  }
  TensorView view(std::initializer_list<int64_t> shape) {
    return gpu_ ? gpu_->view(shape) : TensorView(host_.data(), DType::kF32, shape);
  }
  std::vector<float> floats() const { return gpu_ ? gpu_->floats() : host_; }

 private:
  std::vector<float> host_;
  std::unique_ptr<DeviceValues> gpu_;
};

/// This rank's o, grad_q, grad_k, grad_v, [B, L, H, D] each. Inputs depend on the token alone.
std::vector<std::vector<float>> run(Context& context, const SequencePlan& plan,
                                    KeyValueExchange& exchange, bool causal, bool limited) {
  const int64_t tokens = plan.tokens(), begin = plan.local_begin(), local = plan.local_tokens();
  std::vector<Values> tensors;  // q, k, v, grad_o, o, grad_q, grad_k, grad_v
  for (uint64_t i = 0; i < 8; ++i) {
    const std::vector<float> whole = test::random_values(kBatch * tokens * kWidth, i + 1);
    std::vector<float> mine;
    for (int64_t b = 0; b < kBatch; ++b)
      mine.insert(mine.end(), whole.begin() + (b * tokens + begin) * kWidth,
                  whole.begin() + (b * tokens + begin + local) * kWidth);
    mine.push_back(0);  // an empty shard has an address
    tensors.emplace_back(context, std::move(mine));
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
  const DeviceValues gpu_first(first), gpu_last(last);
  Visibility visibility;
  if (limited && context.on_gpu())
    visibility = {gpu_first.view({kBatch, local}), gpu_last.view({kBatch, local})};
  else if (limited)
    visibility = {TensorView(first.data(), DType::kI64, {kBatch, local}),
                  TensorView(last.data(), DType::kI64, {kBatch, local})};
  const auto view = [&](int i) { return tensors[i].view({kBatch, local, kHeads, kHeadDim}); };
  Values lse(context, std::vector<float>(kBatch * kHeads * local + 1));
  const TensorView lse_view = lse.view({kBatch, kHeads, local});
  Arena arena("test", false, context.device());
  DilatedAttentionSettings settings;
  settings.head_dim = kHeadDim;
  settings.causal = causal;
  DilatedAttentionOperator attention(context, plan, kBatch, settings, exchange, arena);
  auto saved = attention.make_saved(arena);
  const QueryKeyValue inputs{view(0), view(1), view(2)};
  attention.forward(view(4), lse_view, inputs, saved, visibility);
  attention.backward({view(5), view(6), view(7)}, view(3), view(4), lse_view, inputs, saved,
                     visibility);
  context.wait();
  std::vector<std::vector<float>> results;
  for (const int i : {4, 5, 6, 7}) {
    results.push_back(tensors[i].floats());
    results.back().pop_back();
  }
  return results;
}

TEST(OperatorRanks, GpusOfAllRanksGiveWhatOneCpuRankGives) {
  Context gpu = gpu_context();
  Context cpu({.device = {}, .threads = 1, .counting = false});
  const auto nccl = make_nccl_communicator(make_mpi_communicator(),
                                           {.compute = gpu.stream(), .device = kGpu});
  const int size = nccl->size(), rank = nccl->rank();
  for (const int64_t tokens : {61, 5})
    for (const bool causal : {true, false})
      for (const bool limited : {false, true}) {
        const std::vector<Branch> branches{{16, 1}, {32, 3}, {128, 2}};
        const SequencePlan plan(tokens, size, rank, kHeads, branches, HeadOffset::kInterleaved);
        const SequencePlan alone(tokens, 1, 0, kHeads, branches, HeadOffset::kInterleaved);
        SequenceExchange exchange(*nccl, plan, kBatch, kHeadDim);
        NoExchange nothing;
        const auto mine = run(gpu, plan, exchange, causal, limited);
        const auto whole = run(cpu, alone, nothing, causal, limited);
        double largest = 0, worst = 0;
        for (int i = 1; i < 4; ++i)
          largest = std::max(largest, difference(whole[i], whole[i]).max_expected);
        for (int i = 0; i < 4; ++i) {
          std::vector<float> expected;
          for (int64_t b = 0; b < kBatch; ++b)
            expected.insert(
                expected.end(), whole[i].begin() + (b * tokens + plan.local_begin()) * kWidth,
                whole[i].begin() +
                    (b * tokens + plan.local_begin() + plan.local_tokens()) * kWidth);
          Difference d = difference(mine[i], expected);
          d.max_expected = difference(whole[i], whole[i]).max_expected;  // of the whole tensor
          worst = std::max(worst, test::error_ratio(d, i > 0 ? largest : 0));
        }
        EXPECT_LE(worst, 1.0) << tokens << " tokens, causal " << causal << ", limits " << limited;
      }
}

}  // namespace
}  // namespace longnet::simt_test
