// Dilated attention on a real GPU through its dispatcher: cudnn, native and plain against each
// other at shapes that are too long for the double reference, and the golden files. native and
// cudnn take bf16. A choice that the program lacks is left out; cuDNN must take what it is built
// for.
#include <algorithm>
#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_cudnn.h"
#include "kernels/attention/segment_tasks.h"
#include "simt/device_values.h"
#include "simt/support.h"
#include "support/compare.h"
#include "support/golden.h"

namespace longnet::simt_test {
namespace {

using test::difference;
using test::error_ratio;
using test::random_values;
using Values = std::vector<float>;

// Two kernels that read the same bf16 numbers: cudnn rounds rotated operands, p, ds and every
// branch's results to bf16, native p and ds. See attention_sdpa_simt_test.cpp for the size.
constexpr double kTolerance = 0.012;
// Golden inputs are f32; rounded to bf16 they change results by a few roundings more.
constexpr double kGoldenTolerance = 0.03;

struct Problem {
  int64_t batch = 1, tokens = 64, heads = 2, head_dim = 64;
  std::vector<Branch> branches = {{64, 1}};
  bool causal = true;
  HeadOffset mode = HeadOffset::kInterleaved;
  Position position = Position::kNone;
  DType dtype = DType::kBF16;
  Values query, key, value, grad_out;  // [B, N, H, D]

  int64_t elements() const { return batch * tokens * heads * head_dim; }
  void fill_random() {
    query = random_values(elements(), 1);
    key = random_values(elements(), 2);
    value = random_values(elements(), 3);
    grad_out = random_values(elements(), 4);
  }
  std::string name() const {
    std::string text = fmt::format("B{} N{} H{} D{} {} position {}", batch, tokens, heads, head_dim,
                                   causal ? "causal" : "full", int(position));
    for (const Branch& b : branches) text += fmt::format(" ({}, {})", b.segment_length, b.dilation);
    return text;
  }
};

struct Result {
  Values out, lse, grad_query, grad_key, grad_value;
};

/// context: keeps cuDNN's plans, which take longer to build than to run.
Result run(Context& context, const Problem& p, AttentionChoice choice) {
  context.set_attention(choice);
  const SequencePlan plan(p.tokens, 1, 0, p.heads, p.branches, p.mode);
  const RotaryTable table(p.head_dim, {p.position, 10000, 512});
  const int64_t n = p.elements(), rows = p.batch * p.heads * p.tokens;
  const DeviceValues query(p.dtype, p.query), key(p.dtype, p.key), value(p.dtype, p.value),
      grad_out(p.dtype, p.grad_out);
  const DeviceValues out(DType::kF32, n), lse(DType::kF32, rows), delta(DType::kF32, rows);
  const DeviceValues grad_query(DType::kF32, Values(n)), grad_key(DType::kF32, Values(n)),
      grad_value(DType::kF32, Values(n));
  const auto view = [&](const DeviceValues& v) {
    return v.view({p.batch, p.tokens, p.heads, p.head_dim});
  };
  const auto row_view = [&](const DeviceValues& v) { return v.view({p.batch, p.heads, p.tokens}); };
  attention_begin(context, view(out), row_view(lse));
  for (const bool backward : {false, true}) {
    if (backward) attention_delta(context, row_view(delta), view(grad_out), view(out));
    for (int branch = 0; branch < int(p.branches.size()); ++branch) {
      const std::vector<int64_t> offsets = plan.head_offsets(branch);
      AttentionOptions options;
      options.dilation = p.branches[branch].dilation;
      options.segment_length = p.branches[branch].segment_length;
      options.head_offset = offsets;
      options.rotary = &table;
      options.scale = static_cast<float>(1.0 / std::sqrt(double(p.head_dim)));
      options.causal = p.causal;
      const auto tasks = local_segment_tasks(plan, branch, view(key), view(value), view(grad_key),
                                             view(grad_value));
      const int64_t bytes =
          attention_workspace_bytes(context, {p.batch, p.head_dim, p.dtype}, tasks, backward);
      const DeviceValues workspace(DType::kF32, std::max<int64_t>(1, (bytes + 3) / 4));
      if (backward)
        attention_backward(context,
                           {view(grad_query), view(grad_out), row_view(lse), row_view(delta),
                            view(query), tasks, view(out)},
                           options, workspace.data());
      else
        attention_forward(context, {view(out), row_view(lse), view(query), tasks}, options,
                          workspace.data());
      context.wait();
    }
  }
  return {out.floats(), lse.floats(), grad_query.floats(), grad_key.floats(), grad_value.floats()};
}

struct Ratios {
  double out, lse, gradients;
  double worst() const { return std::max({out, lse, gradients}); }
};
/// Errors as shares of the tolerance.
Ratios compare(const Result& actual, const Result& expected, double tolerance) {
  double largest = 0;
  for (const Values* v : {&expected.grad_query, &expected.grad_key, &expected.grad_value})
    for (const float x : *v) largest = std::max(largest, std::abs(double(x)));
  const auto ratio = [&](const Values& a, const Values& b, double scale) {
    return error_ratio(difference(a, b), scale, tolerance);
  };
  return {ratio(actual.out, expected.out, 0), ratio(actual.lse, expected.lse, 0),
          std::max({ratio(actual.grad_query, expected.grad_query, largest),
                    ratio(actual.grad_key, expected.grad_key, largest),
                    ratio(actual.grad_value, expected.grad_value, largest)})};
}

/// What `choice` gives, or why it takes no such call.
std::optional<Result> run_if_taken(Context& context, const Problem& p, AttentionChoice choice,
                                   std::string& refusal) {
  try {
    return run(context, p, choice);
  } catch (const Error& error) {
    const std::string text = error.what();
    if (text.find("run.attention=auto") == std::string::npos) throw;
    refusal += text + "\n";
    return std::nullopt;
  }
}

std::vector<Problem> problems() {
  std::vector<Problem> list;
  for (const int64_t head_dim : {64, 80, 96, 128}) {
    const auto add = [&](int64_t batch, int64_t tokens, int64_t heads, std::vector<Branch> branches,
                         bool causal, Position position) {
      Problem p;
      p.batch = batch;
      p.tokens = tokens;
      p.heads = heads;
      p.head_dim = head_dim;
      p.branches = std::move(branches);
      p.causal = causal;
      p.position = position;
      list.push_back(p);
    };
    add(2, 1000, 3, {{300, 1}, {1000, 2}}, true, Position::kXpos);  // tails
    if (head_dim % 64 != 0) continue;  // every shape costs cuDNN two plans
    add(1, 4096, 2, {{2048, 1}}, true, Position::kNone);
    add(1, 2048, 12, {{512, 1}, {1024, 4}, {2048, 12}}, true, Position::kXpos);
    if (head_dim == 64) add(1, 1500, 4, {{512, 2}, {1500, 3}}, false, Position::kRope);
  }
  return list;
}

/// A build that has cuDNN fails where it is not used.
void require_cudnn(bool taken, const std::string& name, const std::string& refusals) {
  EXPECT_TRUE(taken || !cudnn::unavailable().empty()) << name << ": cuDNN takes none of it\n"
                                                      << refusals;
}

TEST(AttentionGpu, CudnnNativeAndPlainAgree) {
  Context context = gpu_context();
  for (Problem& p : problems()) {
    p.fill_random();
    const Result plain = run(context, p, AttentionChoice::kPlain);
    std::string refusals;
    const std::optional<Result> cudnn = run_if_taken(context, p, AttentionChoice::kCudnn, refusals),
                                native =
                                    run_if_taken(context, p, AttentionChoice::kNative, refusals);
    require_cudnn(cudnn.has_value(), p.name(), refusals);
    std::string line;
    const auto hold = [&](const std::optional<Result>& a, const std::optional<Result>& b,
                          const char* pair) {
      if (!a || !b) return;
      const Ratios r = compare(*a, *b, kTolerance);
      EXPECT_LE(r.worst(), 1) << p.name() << " " << pair << ": out " << r.out << ", lse " << r.lse
                              << ", gradients " << r.gradients;
      line += fmt::format(" {} {:.3f} {:.3f} {:.3f}", pair, r.out, r.lse, r.gradients);
    };
    hold(cudnn, plain, "cudnn/plain");
    hold(native, plain, "native/plain");
    hold(cudnn, native, "cudnn/native");
    EXPECT_TRUE(cudnn || native) << p.name() << ": only plain takes it\n" << refusals;
    printf("  %s:%s (shares of the allowance: out, lse, gradients)%s%s\n", p.name().c_str(),
           line.c_str(), refusals.empty() ? "" : "; not taken: ", refusals.c_str());
  }
}

TEST(AttentionGpu, GoldenFiles) {
  const std::vector<std::string> names = test::golden_names("attention-");
  ASSERT_GE(names.size(), 7u);
  Context context = gpu_context();
  for (const std::string& name : names) {
    const test::GoldenFile golden(name);
    const nlohmann::json& c = golden.description;
    Problem p;
    p.batch = c["batch"];
    p.tokens = c["tokens"];
    p.heads = c["heads"];
    p.head_dim = c["head_dim"];
    p.causal = c["causal"];
    p.mode = c["head_offset"] == "blocked" ? HeadOffset::kBlocked : HeadOffset::kInterleaved;
    p.branches.clear();
    for (const auto& b : c["branches"]) p.branches.push_back({b[0], b[1]});
    p.query = golden.floats("q");
    p.key = golden.floats("k");
    p.value = golden.floats("v");
    p.grad_out = golden.floats("grad_o");
    const Result expected{golden.floats("o"), golden.floats("lse"), golden.floats("grad_q"),
                          golden.floats("grad_k"), golden.floats("grad_v")};
    p.dtype = DType::kF32;
    const Ratios exact = compare(run(context, p, AttentionChoice::kAuto), expected, 1e-5);
    EXPECT_LE(exact.worst(), 1) << name << " in f32";
    p.dtype = DType::kBF16;
    std::string refusals;
    const auto check_rounded = [&](AttentionChoice choice) {
      const std::optional<Result> rounded = run_if_taken(context, p, choice, refusals);
      if (!rounded) return false;
      EXPECT_LE(compare(*rounded, expected, kGoldenTolerance).worst(), 1)
          << name << " in bf16 by " << attention_choice_name(choice);
      return true;
    };
    const bool cudnn = check_rounded(AttentionChoice::kCudnn);
    check_rounded(AttentionChoice::kNative);
    // Where cuDNN takes every call, auto is the same again.
    EXPECT_TRUE(cudnn || check_rounded(AttentionChoice::kAuto)) << name << "\n" << refusals;
  }
}

TEST(AttentionGpu, NativeAndPlainRepeatBitForBit) {
  Context context = gpu_context();
  for (const AttentionChoice choice : {AttentionChoice::kPlain, AttentionChoice::kNative}) {
    Problem p;
    p.tokens = 3000;
    p.heads = 4;
    p.branches = {{1024, 1}, {3000, 3}};
    p.position = Position::kXpos;
    p.fill_random();
    std::string refusal;
    const std::optional<Result> first = run_if_taken(context, p, choice, refusal);
    if (!first) GTEST_SKIP() << refusal;
    const Result again = run(context, p, choice);
    for (Values Result::*v :
         {&Result::out, &Result::lse, &Result::grad_query, &Result::grad_key, &Result::grad_value})
      EXPECT_EQ((*first).*v, again.*v) << attention_choice_name(choice);
  }
}

}  // namespace
}  // namespace longnet::simt_test
