// Problems that cuDNN takes and whose gradients it is known to spoil (sdpa::known_defect): they
// must go elsewhere, and all gradients be right where log-sum-exps are far below -88.7, beyond
// which exp(0 - lse) is infinite. On a GPU, or under the emulator with cuDNN's stand-in.
#include <algorithm>
#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_cudnn.h"
#include "simt/device_values.h"
#include "simt/log_text.h"
#include "simt/support.h"
#include "support/compare.h"

namespace longnet::simt_test {
namespace {

using test::difference;
using test::error_ratio;
using test::random_values;
using Values = std::vector<float>;

constexpr int64_t kHeads = 2, kDim = 64;
// Scores of -120 want long queries and keys, so that a gradient is a small difference of large
// terms. Largest seen under the emulator: 0.37 of this.
constexpr double kTolerance = 0.03;

#define SKIP_WITHOUT_CUDNN() \
  if (!cudnn::unavailable().empty()) GTEST_SKIP() << cudnn::unavailable()

struct Problem {
  int64_t query_rows, key_rows;
};

struct Result {
  Values out, lse, grad_query, grad_key, grad_value;
};

/// bf16 numbers; keys point away from the queries, all scores are near -120.
struct Inputs {
  Values query, key, value, grad_out;
  explicit Inputs(const Problem& p) {
    const Values direction = random_values(kDim, 5);
    double length = 0;
    for (const float x : direction) length += double(x) * x;
    const auto make = [&](int64_t rows, double along, float noise, uint64_t seed) {
      Values v = random_values(rows * kHeads * kDim, seed, noise);
      for (size_t i = 0; i < v.size(); ++i)
        v[i] = to_float(
            to_bf16(float(v[i] + along * double(direction[i % kDim]) / std::sqrt(length))));
      return v;
    };
    const double along = std::sqrt(120 * std::sqrt(double(kDim)));
    query = make(p.query_rows, along, 0.3f, 1);
    key = make(p.key_rows, -along, 0.3f, 2);
    value = make(p.key_rows, 0, 1, 3);
    grad_out = make(p.query_rows, 0, 1, 4);
  }
};

/// One segment of full attention whose queries and keys are in tensors of their own.
SegmentTask task_of(const Problem& p, const TensorView& key, const TensorView& value,
                    const TensorView& grad_key, const TensorView& grad_value) {
  const std::vector<int64_t> zero(kHeads, 0);
  SegmentTask task;
  task.segment = {0, std::max(p.query_rows, p.key_rows)};
  task.queries = {zero, zero, std::vector<int64_t>(kHeads, p.query_rows), 1};
  KeySource keys;
  keys.key = key;
  keys.value = value;
  keys.grad_key = grad_key;
  keys.grad_value = grad_value;
  keys.rows = {zero, zero, std::vector<int64_t>(kHeads, p.key_rows), 1};
  task.keys.push_back(keys);
  return task;
}

AttentionOptions options_of() {
  static const std::vector<int64_t> offsets(kHeads, 0);
  AttentionOptions options;
  options.head_offset = offsets;
  options.scale = float(1 / std::sqrt(double(kDim)));
  options.causal = false;
  return options;
}

Result run_reference(const Problem& p) {
  Inputs in(p);
  const auto view = [&](Values& v) {
    return TensorView(v.data(), DType::kF32,
                      {1, int64_t(v.size()) / (kHeads * kDim), kHeads, kDim});
  };
  const auto rows = [&](Values& v) {
    return TensorView(v.data(), DType::kF32, {1, kHeads, p.query_rows});
  };
  Result r{Values(in.query.size()), Values(kHeads * p.query_rows, -INFINITY),
           Values(in.query.size()), Values(in.key.size()), Values(in.key.size())};
  Values delta(r.lse.size());
  const SegmentTask task =
      task_of(p, view(in.key), view(in.value), view(r.grad_key), view(r.grad_value));
  reference::attention_forward({view(r.out), rows(r.lse), view(in.query), {&task, 1}},
                               options_of());
  reference::attention_delta(rows(delta), view(in.grad_out), view(r.out));
  reference::attention_backward(
      {view(r.grad_query), view(in.grad_out), rows(r.lse), rows(delta), view(in.query), {&task, 1}},
      options_of());
  return r;
}

Result run_gpu(Context& context, const Problem& p) {
  const Inputs in(p);
  const auto bf16s = [](const Values& v) { return DeviceValues(DType::kBF16, v); };
  const auto zeros = [](size_t n) { return DeviceValues(DType::kF32, Values(n)); };
  const DeviceValues query = bf16s(in.query), key = bf16s(in.key), value = bf16s(in.value),
                     grad_out = bf16s(in.grad_out);
  const DeviceValues out = zeros(in.query.size()), grad_query = zeros(in.query.size()),
                     grad_key = zeros(in.key.size()), grad_value = zeros(in.key.size()),
                     lse = zeros(kHeads * p.query_rows), delta = zeros(kHeads * p.query_rows);
  const auto queries = [&](const DeviceValues& v) {
    return v.view({1, p.query_rows, kHeads, kDim});
  };
  const auto keys = [&](const DeviceValues& v) { return v.view({1, p.key_rows, kHeads, kDim}); };
  const auto rows = [&](const DeviceValues& v) { return v.view({1, kHeads, p.query_rows}); };
  const SegmentTask task = task_of(p, keys(key), keys(value), keys(grad_key), keys(grad_value));
  const DeviceValues workspace(
      DType::kF32,
      attention_workspace_bytes(context, {1, kDim, DType::kBF16}, {&task, 1}, true) / 4);
  attention_begin(context, queries(out), rows(lse));
  attention_forward(context, {queries(out), rows(lse), queries(query), {&task, 1}}, options_of(),
                    workspace.data());
  attention_delta(context, rows(delta), queries(grad_out), queries(out));
  attention_backward(context,
                     {queries(grad_query),
                      queries(grad_out),
                      rows(lse),
                      rows(delta),
                      queries(query),
                      {&task, 1},
                      queries(out)},
                     options_of(), workspace.data());
  context.wait();
  return {out.floats(), lse.floats(), grad_query.floats(), grad_key.floats(), grad_value.floats()};
}

TEST(AttentionSdpaLimitsSimt, GradientsAreRightFarBelowZero) {
  double worst = 0;
  // Fewer rows than a tile, tails of half a tile and of other sizes, whole tiles, one query.
  for (const Problem& p : {Problem{64, 64},
                           {192, 192},
                           {100, 192},
                           {333, 64},
                           {1, 128},
                           {1, 65},
                           {128, 128},
                           {100, 200},
                           {64, 300}}) {
    SCOPED_TRACE(fmt::format("{} queries, {} keys", p.query_rows, p.key_rows));
    Context context = gpu_context();
    const Result actual = run_gpu(context, p), expected = run_reference(p);
    for (const float x : expected.lse) ASSERT_LT(x, -100);
    double largest = 0;
    for (const Values* v : {&expected.grad_query, &expected.grad_key, &expected.grad_value})
      for (const float x : *v) largest = std::max(largest, std::abs(double(x)));
    for (Values Result::*v : {&Result::out, &Result::lse, &Result::grad_query, &Result::grad_key,
                              &Result::grad_value}) {
      for (const float x : actual.*v) ASSERT_TRUE(std::isfinite(x));
      const bool gradient = v != &Result::out && v != &Result::lse;
      const double ratio =
          error_ratio(difference(actual.*v, expected.*v), gradient ? 10 * largest : 0, kTolerance);
      EXPECT_LE(ratio, 1);
      worst = std::max(worst, ratio);
    }
  }
  std::printf("    worst share of the allowance %.2f\n", worst);
}

TEST(AttentionSdpaLimitsSimt, KnownDefectsGoToNativeAndTheLogSaysWhy) {
  SKIP_WITHOUT_CUDNN();
  const auto lines = [](const Problem& p, AttentionChoice choice) {
    const LogText log;
    Context context = gpu_context();
    context.set_attention(choice);
    try {
      run_gpu(context, p);
    } catch (const Error& error) {
      return log.text() + error.what();
    }
    return log.text();
  };
  const struct {
    Problem problem;
    const char* reason;  // of the backward
  } cases[] = {
      {{64, 64}, "the backward of 64 keys (64 above a multiple of 128), where cuDNN may give NaN"},
      {{100, 192},
       "the backward of 192 keys (64 above a multiple of 128), where cuDNN may give NaN"},
      {{1, 128}, "the backward of a single query, where cuDNN may give NaN"},
  };
  for (const auto& c : cases) {
    const int64_t length = std::max(c.problem.query_rows, c.problem.key_rows);
    const std::string first = fmt::format(
        "attention of branch ({}, 1): cudnn; 1 call of 1 x 2 heads with {} x {} rows, query in "
        "place, key in place, value in place\n",
        length, c.problem.query_rows, c.problem.key_rows);
    EXPECT_EQ(lines(c.problem, AttentionChoice::kAuto),
              first + fmt::format("attention of branch ({}, 1), backward: native; cudnn: {}\n",
                                  length, c.reason));
    EXPECT_EQ(lines(c.problem, AttentionChoice::kCudnn),
              first + fmt::format("run.attention=cudnn: backward of branch ({}, 1): {}; set "
                                  "run.attention=auto",
                                  length, c.reason));
  }
  EXPECT_EQ(lines({128, 128}, AttentionChoice::kAuto).find("native"), std::string::npos);
}

}  // namespace
}  // namespace longnet::simt_test
