// Attention against its definition: golden files, a naive oracle, every instruction set and twin,
// gathered segments against one rank, visibility, strides, thread counts, counters.
#include "kernels/attention/attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>

#include "core/arena.h"
#include "kernels/attention/segment_tasks.h"
#include "support/compare.h"
#include "support/floats.h"
#include "support/golden.h"

namespace longnet {
namespace {

using test::difference;
using test::Difference;
using test::error_ratio;
using test::random_values;
using Values = std::vector<float>;

std::vector<Isa> instruction_sets() {
  std::vector<Isa> sets;
  for (Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512})
    if (isa <= Context().isa()) sets.push_back(isa);
  return sets;
}

/// One attention problem on a whole sequence.
struct Problem {
  int64_t batch = 1, tokens = 64, heads = 2, head_dim = 16;
  std::vector<Branch> branches = {{64, 1}};
  bool causal = true;
  HeadOffset mode = HeadOffset::kInterleaved;
  RotaryOptions rotary;
  uint64_t seed = 1;
  int threads = 2;
  bool bf16_inputs = false;  // query, key, value, grad_out are handed over as bf16
  std::vector<int64_t> first_visible, last_visible;  // [B, N] or empty
  Values query, key, value, grad_out;                // [B, N, H, D]; empty: random

  int64_t elements() const { return batch * tokens * heads * head_dim; }
  void fill_random() {
    if (!query.empty()) return;
    query = random_values(elements(), seed);
    key = random_values(elements(), seed + 1000);
    value = random_values(elements(), seed + 2000);
    grad_out = random_values(elements(), seed + 3000);
  }
  std::string name() const {
    std::string text =
        fmt::format("B{} N{} H{} D{} {} {} position {}", batch, tokens, heads, head_dim,
                    causal ? "causal" : "full",
                    mode == HeadOffset::kBlocked ? "blocked" : "interleaved", int(rotary.position));
    for (const Branch& b : branches) text += fmt::format(" ({}, {})", b.segment_length, b.dilation);
    return text;
  }
};

struct Result {
  Values out, lse, grad_query, grad_key, grad_value;
};

TensorView view4(Values& values, int64_t b, int64_t n, int64_t h, int64_t d) {
  return TensorView(values.data(), DType::kF32, {b, n, h, d});
}

AttentionOptions make_options(const Problem& p, const Branch& branch,
                              const std::vector<int64_t>& offsets, const RotaryTable* rotary) {
  AttentionOptions options;
  options.dilation = branch.dilation;
  options.head_offset = offsets;
  options.rotary = rotary;
  options.scale = static_cast<float>(1.0 / std::sqrt(double(p.head_dim)));
  options.causal = p.causal;
  const auto visibility = [&](const std::vector<int64_t>& v) {
    return v.empty() ? TensorView()
                     : TensorView(const_cast<int64_t*>(v.data()), DType::kI64, {p.batch, p.tokens});
  };
  options.first_visible = visibility(p.first_visible);
  options.last_visible = visibility(p.last_visible);
  return options;
}

/// All branches on one rank. isa: null = the reference twin. shift: added to every global token
/// number.
Result run(Problem& p, const Isa* isa, int64_t shift = 0) {
  p.fill_random();
  ContextOptions context_options;
  context_options.threads = p.threads;
  Context context(context_options);
  if (isa != nullptr) context.set_isa(*isa);
  const SequencePlan plan(p.tokens, 1, 0, p.heads, p.branches, p.mode);
  const RotaryTable rotary(p.head_dim, p.rotary);
  const int64_t n = p.elements();
  // NaN: begin() and the kernels must write every place.
  Result r{Values(n, NAN), Values(p.batch * p.heads * p.tokens, NAN), Values(n), Values(n),
           Values(n)};
  const auto view = [&](Values& v) { return view4(v, p.batch, p.tokens, p.heads, p.head_dim); };
  std::vector<test::Floats> inputs;
  for (const Values* values : {&p.query, &p.key, &p.value, &p.grad_out})
    inputs.emplace_back(p.bf16_inputs ? DType::kBF16 : DType::kF32, *values);
  const auto input = [&](int i) {
    return inputs[i].view({p.batch, p.tokens, p.heads, p.head_dim});
  };
  const TensorView query = input(0), key = input(1), value = input(2), grad_out = input(3);
  const TensorView lse(r.lse.data(), DType::kF32, {p.batch, p.heads, p.tokens});
  attention_begin(context, view(r.out), lse);
  std::vector<std::vector<SegmentTask>> tasks;
  Arena arena("test");
  for (int pass = 0; pass < 2; ++pass) {
    Values delta_values(r.lse.size(), NAN);
    const TensorView delta(delta_values.data(), DType::kF32, {p.batch, p.heads, p.tokens});
    if (pass == 1) {
      if (isa != nullptr)
        attention_delta(context, delta, grad_out, view(r.out));
      else
        reference::attention_delta(delta, grad_out, view(r.out));
    }
    for (int branch = 0; branch < int(p.branches.size()); ++branch) {
      const std::vector<int64_t> offsets = plan.head_offsets(branch);
      const AttentionOptions options = make_options(p, p.branches[branch], offsets, &rotary);
      std::vector<SegmentTask> segments =
          local_segment_tasks(plan, branch, key, value, view(r.grad_key), view(r.grad_value));
      for (SegmentTask& task : segments) {
        task.segment.begin += shift;
        task.segment.end += shift;
        task.origin += shift;
      }
      const int64_t bytes =
          attention_workspace_bytes(context, {.head_dim = p.head_dim}, segments, pass == 1);
      void* workspace = arena.allocate_bytes(bytes);
      std::memset(workspace, 0xff, bytes);  // NaN: nothing may be read before it is written
      const AttentionForward forward{view(r.out), lse, query, segments};
      const AttentionBackward backward{view(r.grad_query), grad_out, lse, delta, query, segments};
      if (isa == nullptr && pass == 0) reference::attention_forward(forward, options);
      if (isa == nullptr && pass == 1) reference::attention_backward(backward, options);
      if (isa != nullptr && pass == 0) attention_forward(context, forward, options, workspace);
      if (isa != nullptr && pass == 1) attention_backward(context, backward, options, workspace);
    }
  }
  return r;
}

/// Independent oracle in type T: one softmax over all (branch, key) pairs of the whole score
/// matrix, plain sums in order. T = float is the "plain float loop" that tolerances are measured
/// by.
template <typename T>
Result naive(Problem& p) {
  p.fill_random();
  const int64_t n = p.elements();
  Result r{Values(n), Values(p.batch * p.heads * p.tokens), Values(n), Values(n), Values(n)};
  const T scale = T(1) / std::sqrt(T(p.head_dim));
  const auto at = [&](int64_t b, int64_t t, int64_t h) {
    return ((b * p.tokens + t) * p.heads + h) * p.head_dim;
  };
  // Rotation by double angles from the sequence's middle; back: the transposed map.
  const auto turn = [&](std::vector<T> x, int64_t t, bool key, bool back) {
    if (p.rotary.position == Position::kNone) return x;
    for (int64_t i = 0; i < p.head_dim / 2; ++i) {
      const double position = double(t - p.tokens / 2);
      const double angle = position * std::pow(p.rotary.base, -2.0 * i / p.head_dim);
      const double z = (2 * i + 0.4 * p.head_dim) / (1.4 * p.head_dim);
      const double factor = p.rotary.position == Position::kXpos
                                ? std::pow(z, (key ? -1 : 1) * position / p.rotary.xpos_scale_base)
                                : 1.0;
      const T c = T(std::cos(angle) * factor), s = T(std::sin(angle) * factor * (back ? -1 : 1));
      const T a = x[2 * i], d = x[2 * i + 1];
      x[2 * i] = a * c - d * s;
      x[2 * i + 1] = d * c + a * s;
    }
    return x;
  };
  const auto read = [&](const Values& v, int64_t b, int64_t t, int64_t h) {
    return std::vector<T>(v.begin() + at(b, t, h), v.begin() + at(b, t, h) + p.head_dim);
  };
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t h = 0; h < p.heads; ++h) {
      std::vector<std::vector<T>> q, k, v, go, gk(p.tokens), gv(p.tokens);
      for (int64_t t = 0; t < p.tokens; ++t) {
        q.push_back(turn(read(p.query, b, t, h), t, false, false));
        k.push_back(turn(read(p.key, b, t, h), t, true, false));
        v.push_back(read(p.value, b, t, h));
        go.push_back(read(p.grad_out, b, t, h));
        gk[t].resize(p.head_dim);
        gv[t].resize(p.head_dim);
      }
      const auto multiplicity = [&](int64_t t, int64_t u) {
        if (p.causal && u > t) return 0;
        if (!p.first_visible.empty() && u < p.first_visible[b * p.tokens + t]) return 0;
        if (!p.last_visible.empty() && u > p.last_visible[b * p.tokens + t]) return 0;
        int count = 0;
        for (const auto& [w, dilation] : p.branches) {
          const int64_t offset = p.mode == HeadOffset::kInterleaved
                                     ? h % dilation
                                     : h / ((p.heads + dilation - 1) / dilation);
          count += t / w == u / w && t % w % dilation == offset && u % w % dilation == offset;
        }
        return count;
      };
      for (int64_t t = 0; t < p.tokens; ++t) {
        std::vector<T> s(p.tokens), o(p.head_dim), gq(p.head_dim);
        T peak = -INFINITY, sum = 0;
        for (int64_t u = 0; u < p.tokens; ++u) {
          if (multiplicity(t, u) == 0) continue;
          for (int64_t d = 0; d < p.head_dim; ++d) s[u] += q[t][d] * k[u][d];
          s[u] *= scale;
          peak = std::max(peak, s[u]);
        }
        const int64_t lse_at = (b * p.heads + h) * p.tokens + t;
        r.lse[lse_at] = -INFINITY;
        if (peak == T(-INFINITY)) continue;
        for (int64_t u = 0; u < p.tokens; ++u) {
          const int m = multiplicity(t, u);
          if (m == 0) continue;
          s[u] = m * std::exp(s[u] - peak);
          sum += s[u];
          for (int64_t d = 0; d < p.head_dim; ++d) o[d] += s[u] * v[u][d];
        }
        r.lse[lse_at] = float(peak + std::log(sum));
        T delta = 0;
        for (int64_t d = 0; d < p.head_dim; ++d) {
          o[d] /= sum;
          r.out[at(b, t, h) + d] = float(o[d]);
          delta += o[d] * go[t][d];
        }
        for (int64_t u = 0; u < p.tokens; ++u) {
          const T weight = s[u] / sum;
          if (weight == 0) continue;
          T grad_weight = 0;
          for (int64_t d = 0; d < p.head_dim; ++d) grad_weight += go[t][d] * v[u][d];
          const T grad_score = weight * (grad_weight - delta) * scale;
          for (int64_t d = 0; d < p.head_dim; ++d) {
            gv[u][d] += weight * go[t][d];
            gq[d] += grad_score * k[u][d];
            gk[u][d] += grad_score * q[t][d];
          }
        }
        const std::vector<T> back = turn(gq, t, false, true);
        for (int64_t d = 0; d < p.head_dim; ++d) r.grad_query[at(b, t, h) + d] = float(back[d]);
      }
      for (int64_t u = 0; u < p.tokens; ++u) {
        const std::vector<T> back = turn(gk[u], u, true, true);
        for (int64_t d = 0; d < p.head_dim; ++d) {
          r.grad_key[at(b, u, h) + d] = float(back[d]);
          r.grad_value[at(b, u, h) + d] = float(gv[u][d]);
        }
      }
    }
  return r;
}

struct Named {
  const char* name;
  const Values& actual;
  const Values& expected;
  bool gradient;
};
std::vector<Named> pairs_of(const Result& a, const Result& e) {
  return {{"out", a.out, e.out, false},
          {"lse", a.lse, e.lse, false},
          {"grad_query", a.grad_query, e.grad_query, true},
          {"grad_key", a.grad_key, e.grad_key, true},
          {"grad_value", a.grad_value, e.grad_value, true}};
}
double largest_gradient(const Result& e) {
  double g = 0;
  for (const Values* v : {&e.grad_query, &e.grad_key, &e.grad_value})
    for (float x : *v) g = std::max(g, std::abs(double(x)));
  return g;
}
/// Largest error as a share of the golden rule's allowance; <= 1 passes.
double golden_ratio(const Result& actual, const Result& expected) {
  double worst = 0;
  for (const Named& n : pairs_of(actual, expected))
    worst = std::max(worst, error_ratio(difference(n.actual, n.expected),
                                        n.gradient ? largest_gradient(expected) : 0));
  return worst;
}
/// The house rule: at most 3 times the plain float loop's error plus 16 eps of the largest entry.
/// For gradients that is the largest of all: grad_s = p (<grad_o, v> - delta) cancels terms as
/// large as grad_v's, and exactly so for a query with one key, where any order of sums but the
/// plain one rounds.
void expect_as_good_as_plain(const Result& actual, const Result& expected, const Result& plain,
                             const std::string& what) {
  const auto a = pairs_of(actual, expected), f = pairs_of(plain, expected);
  for (size_t i = 0; i < a.size(); ++i) {
    const Difference d = difference(a[i].actual, a[i].expected);
    const Difference plain_d = difference(f[i].actual, f[i].expected);
    const double scale =
        std::max(d.max_expected, a[i].gradient ? largest_gradient(expected) : d.max_expected);
    EXPECT_LE(d.max_difference, 3 * plain_d.max_difference + 16 * 1.2e-7 * scale)
        << what << " " << a[i].name << ": plain float errs by " << plain_d.max_difference;
  }
}

TEST(Attention, GoldenFiles) {
  const std::vector<std::string> names = test::golden_names("attention-");
  ASSERT_GE(names.size(), 7u);
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
    const double reference_ratio = golden_ratio(run(p, nullptr), expected);
    EXPECT_LE(reference_ratio, 1) << name;
    for (Isa isa : instruction_sets()) {
      const double ratio = golden_ratio(run(p, &isa), expected);
      EXPECT_LE(ratio, 1) << name << " " << isa_name(isa);
      ::testing::Test::RecordProperty(name + "." + isa_name(isa), fmt::format("{:.3f}", ratio));
      fmt::print("{} {}: {:.3f} of the allowance (reference {:.3f})\n", name, isa_name(isa), ratio,
                 reference_ratio);
    }
  }
}

std::vector<Problem> problems() {
  using enum HeadOffset;
  const RotaryOptions none, rope{Position::kRope, 10000, 512}, xpos{Position::kXpos, 10000, 512};
  std::vector<Problem> list;
  const auto add = [&](int64_t b, int64_t n, int64_t h, int64_t d, std::vector<Branch> branches,
                       bool causal, HeadOffset mode, const RotaryOptions& rotary) {
    Problem p;
    p.batch = b;
    p.tokens = n;
    p.heads = h;
    p.head_dim = d;
    p.branches = std::move(branches);
    p.causal = causal;
    p.mode = mode;
    p.rotary = rotary;
    p.seed = list.size() + 1;
    list.push_back(p);
  };
  add(1, 1, 1, 8, {{1, 1}}, true, kInterleaved, none);           // one element
  add(1, 1, 3, 16, {{4, 1}, {8, 2}}, true, kInterleaved, rope);  // w > N
  add(2, 2, 1, 32, {{2, 1}}, false, kInterleaved, xpos);
  add(1, 3, 2, 12, {{7, 2}}, true, kBlocked, none);
  add(3, 17, 5, 8, {{8, 3}, {17, 2}}, true, kInterleaved, rope);  // r does not divide w, H > r
  add(1, 65, 1, 16, {{65, 1}}, true, kInterleaved, none);         // one query past a tile
  add(1, 63, 2, 64, {{63, 1}}, false, kInterleaved, none);
  add(1, 100, 2, 64, {{48, 1}, {100, 2}}, true, kInterleaved, xpos);
  add(2, 97, 3, 40, {{32, 1}, {64, 4}}, true, kBlocked, rope);  // H < r, short last segment
  add(1, 130, 4, 64, {{130, 1}}, true, kInterleaved, rope);
  add(1, 130, 2, 80, {{130, 1}, {64, 3}}, true, kInterleaved, none);
  add(1, 70, 2, 96, {{70, 1}}, false, kBlocked, rope);
  add(1, 150, 1, 128, {{150, 1}}, true, kInterleaved, xpos);
  add(1, 70, 2, 256, {{64, 1}}, true, kInterleaved, rope);
  add(1, 60, 2, 192, {{60, 2}}, false, kInterleaved, none);
  add(1, 50, 1, 111, {{50, 1}}, true, kInterleaved, none);  // odd D
  add(1, 50, 1, 33, {{20, 2}}, true, kInterleaved, none);
  add(1, 64, 7, 16, {{8, 12}, {4, 6}}, true, kInterleaved, none);  // r > w: some heads keep nothing
  add(1, 64, 2, 16, {{16, 4}, {64, 8}}, true, kInterleaved, xpos);  // uncovered queries
  add(2, 300, 2, 32, {{256, 1}, {300, 4}}, true, kInterleaved, rope);
  add(1, 260, 3, 48, {{300, 1}}, false, kInterleaved, none);
  add(1, 321, 1, 64, {{321, 1}}, true, kInterleaved, xpos);  // several tiles and blocks
  return list;
}

/// Widening is exact and all arithmetic float32: bf16 inputs give every bit that the same numbers
/// in float32 give, in the reference and in every twin.
TEST(Attention, Bf16InputsGiveTheBitsOfTheirFloats) {
  for (Problem p : problems()) {
    p.fill_random();
    for (Values* values : {&p.query, &p.key, &p.value, &p.grad_out})
      *values = test::Floats(DType::kBF16, *values).floats();
    Problem low = p;
    low.bf16_inputs = true;
    std::vector<const Isa*> twins{nullptr};
    const std::vector<Isa> sets = instruction_sets();
    for (const Isa& isa : sets) twins.push_back(&isa);
    for (const Isa* isa : twins) {
      const Result expected = run(p, isa), actual = run(low, isa);
      for (const Named& n : pairs_of(actual, expected))
        EXPECT_EQ(std::memcmp(n.actual.data(), n.expected.data(), n.actual.size() * 4), 0)
            << p.name() << " " << n.name;
    }
  }
}

/// Rows packed from bf16 into a bf16 chunk: rotated in float32, rounded once.
TEST(Attention, PackedBf16RowsAreRoundedOnce) {
  const int64_t batch = 2, tokens = 40, heads = 3, head_dim = 16;
  const SequencePlan plan(tokens, 1, 0, heads, {{40, 3}}, HeadOffset::kInterleaved);
  const std::vector<SegmentTask> tasks = local_segment_tasks(plan, 0, {}, {}, {}, {});
  const std::vector<int64_t> offsets = plan.head_offsets(0);
  const HeadRows& rows = tasks[0].queries;
  std::vector<int64_t> slots;
  int64_t chunk_rows = 0;
  for (int64_t h = 0; h < heads; ++h) {
    slots.push_back(chunk_rows);
    chunk_rows += rows.count[h];
  }
  Context context;
  for (const Position position : {Position::kNone, Position::kRope}) {
    const RotaryTable rotary(head_dim, {position, 10000, 512});
    AttentionOptions options;
    options.dilation = 3;
    options.head_offset = offsets;
    options.rotary = &rotary;
    const int64_t n = batch * tokens * heads * head_dim;
    std::vector<Values> packed[2];
    for (const bool low : {false, true}) {
      // Both runs use equal numbers: values that bf16 represents exactly.
      const auto make = [&](uint64_t seed) {
        const test::Floats rounded(DType::kBF16, random_values(n, seed));
        return test::Floats(low ? DType::kBF16 : DType::kF32, rounded.floats());
      };
      test::Floats key = make(1), value = make(2);
      const Values empty(batch * chunk_rows * head_dim, 9.0f);
      test::Floats chunk_key(low ? DType::kBF16 : DType::kF32, empty), chunk_value = chunk_key;
      attention_pack_rows(context, chunk_key.view({batch, chunk_rows, head_dim}),
                          chunk_value.view({batch, chunk_rows, head_dim}),
                          key.view({batch, tokens, heads, head_dim}),
                          value.view({batch, tokens, heads, head_dim}), rows, slots, tasks[0],
                          options);
      packed[low] = {chunk_key.floats(), chunk_value.floats()};
    }
    EXPECT_EQ(packed[1][0], test::Floats(DType::kBF16, packed[0][0]).floats());
    EXPECT_EQ(packed[1][1], packed[0][1]);
  }
}

TEST(Attention, ReferenceAgreesWithNaiveOracle) {
  for (Problem& p : problems()) {
    // Two definitions in double, apart by the float32 state between branches.
    EXPECT_LE(golden_ratio(run(p, nullptr), naive<double>(p)), 0.5) << p.name();
  }
}

TEST(Attention, EveryInstructionSetAgainstReference) {
  for (Problem& p : problems()) {
    const Result expected = naive<double>(p), plain = naive<float>(p);
    for (Isa isa : instruction_sets()) {
      const Result actual = run(p, &isa);
      expect_as_good_as_plain(actual, expected, plain, p.name() + " " + isa_name(isa));
      EXPECT_LE(golden_ratio(actual, run(p, nullptr)), 1) << p.name() << " " << isa_name(isa);
    }
  }
}

TEST(Attention, Visibility) {
  for (int variant = 0; variant < 4; ++variant) {
    Problem p;
    p.batch = 2;
    p.tokens = 200;
    p.heads = 3;
    p.head_dim = 16;
    p.branches = {{64, 1}, {200, 3}};
    p.causal = variant % 2 == 0;
    p.seed = 50 + variant;
    std::mt19937_64 random(variant);
    p.first_visible.resize(p.batch * p.tokens);
    p.last_visible.resize(p.batch * p.tokens);
    for (int64_t i = 0; i < p.batch * p.tokens; ++i) {
      const int64_t t = i % p.tokens;
      if (variant < 2) {  // documents of 70 tokens
        p.first_visible[i] = t / 70 * 70;
        p.last_visible[i] = t / 70 * 70 + 69;
      } else {  // anything, with empty ranges and limits far outside
        p.first_visible[i] = random() % 5 == 0 ? INT64_MIN : int64_t(random() % 220) - 10;
        p.last_visible[i] = random() % 5 == 0 ? INT64_MAX : int64_t(random() % 220) - 10;
      }
    }
    const Result expected = naive<double>(p), plain = naive<float>(p);
    EXPECT_LE(golden_ratio(run(p, nullptr), expected), 0.5) << variant;
    for (Isa isa : instruction_sets())
      expect_as_good_as_plain(run(p, &isa), expected, plain,
                              fmt::format("variant {} {}", variant, isa_name(isa)));
    // Each limit alone.
    Problem first = p, last = p;
    first.last_visible.clear();
    last.first_visible.clear();
    for (Isa isa : instruction_sets()) {
      EXPECT_LE(golden_ratio(run(first, &isa), naive<double>(first)), 1);
      EXPECT_LE(golden_ratio(run(last, &isa), naive<double>(last)), 1);
    }
  }
}

/// P ranks one after the other, chunks copied by hand: what the sequence exchange does.
Result run_ranks(Problem& p, int ranks, Isa isa) {
  p.fill_random();
  ContextOptions context_options;
  context_options.threads = p.threads;
  Context context(context_options);
  context.set_isa(isa);
  const RotaryTable rotary(p.head_dim, p.rotary);
  const int64_t n = p.elements();
  Result r{Values(n), Values(p.batch * p.heads * p.tokens), Values(n), Values(n), Values(n)};
  Values delta_values(r.lse.size());
  const TensorView lse(r.lse.data(), DType::kF32, {p.batch, p.heads, p.tokens});
  const TensorView delta(delta_values.data(), DType::kF32, {p.batch, p.heads, p.tokens});
  const auto view = [&](Values& v) { return view4(v, p.batch, p.tokens, p.heads, p.head_dim); };
  attention_begin(context, view(r.out), lse);
  Arena arena("test");
  std::vector<SequencePlan> plans;
  for (int rank = 0; rank < ranks; ++rank)
    plans.emplace_back(p.tokens, ranks, rank, p.heads, p.branches, p.mode);
  struct Shard {
    TensorView query, key, value, out, lse, delta, grad_query, grad_key, grad_value, grad_out;
  };
  const auto shard = [&](const SequencePlan& plan) {
    const int64_t begin = plan.local_begin(), length = plan.local_tokens();
    const auto part = [&](Values& v) { return view(v).slice(1, begin, length); };
    return Shard{part(p.query),
                 part(p.key),
                 part(p.value),
                 part(r.out),
                 lse.slice(2, begin, length),
                 delta.slice(2, begin, length),
                 part(r.grad_query),
                 part(r.grad_key),
                 part(r.grad_value),
                 part(p.grad_out)};
  };
  for (int pass = 0; pass < 2; ++pass) {
    if (pass == 1) attention_delta(context, delta, view(p.grad_out), view(r.out));
    for (int branch = 0; branch < int(p.branches.size()); ++branch) {
      const std::vector<int64_t> offsets = plans[0].head_offsets(branch);
      const AttentionOptions all = make_options(p, p.branches[branch], offsets, &rotary);
      const auto options_of = [&](const SequencePlan& plan) {
        AttentionOptions o = all;
        for (TensorView* limit : {&o.first_visible, &o.last_visible})
          if (limit->defined()) *limit = limit->slice(1, plan.local_begin(), plan.local_tokens());
        return o;
      };
      const auto attend = [&](const SequencePlan& plan, std::span<const SegmentTask> tasks) {
        const Shard s = shard(plan);
        const int64_t bytes =
            attention_workspace_bytes(context, {.head_dim = p.head_dim}, tasks, pass == 1);
        void* workspace = arena.allocate_bytes(bytes);
        std::memset(workspace, 0xff, bytes);
        const AttentionOptions options = options_of(plan);
        if (pass == 0)
          attention_forward(context, {s.out, s.lse, s.query, tasks}, options, workspace);
        else
          attention_backward(context, {s.grad_query, s.grad_out, s.lse, s.delta, s.query, tasks},
                             options, workspace);
      };
      for (const SequencePlan& plan : plans) {
        const Shard s = shard(plan);
        if (plan.local_tokens() > 0)
          attend(plan, local_segment_tasks(plan, branch, s.key, s.value, s.grad_key, s.grad_value));
        for (const GatheredSegment& gathered : plan.gathered_segments(branch)) {
          const GatherLayout layout(plan, branch, gathered, p.batch, p.head_dim);
          Values buffer_values(layout.elements(), NAN), grad_values(layout.elements());
          const TensorView buffer(buffer_values.data(), DType::kF32, {layout.elements()});
          const TensorView grads(grad_values.data(), DType::kF32, {layout.elements()});
          const auto chunk = [&](const TensorView& whole, int member, int part) {
            const int64_t rows = layout.chunk_rows(member);
            return whole.slice(0, layout.chunk_begin(member), layout.chunk_elements(member))
                .view({2, p.batch, rows, p.head_dim})
                .slice(0, part, 1)
                .view({p.batch, rows, p.head_dim});
          };
          const auto members = [&](auto f) {
            for (int rank = gathered.first_rank; rank <= gathered.last_rank; ++rank)
              f(rank - gathered.first_rank, plans[rank], shard(plans[rank]));
          };
          members([&](int m, const SequencePlan& owner, const Shard& o) {
            SegmentTask task;
            task.segment = gathered.segment;
            task.origin = segment_origin(owner, branch, gathered.segment);
            attention_pack_rows(context, chunk(buffer, m, 0), chunk(buffer, m, 1), o.key, o.value,
                                local_rows(owner, branch, gathered.segment), layout.row_slot(m),
                                task, options_of(owner));
          });
          const SegmentTask task =
              gathered_segment_task(plan, branch, gathered, layout, buffer, grads);
          attend(plan, {&task, 1});
          if (pass == 0) continue;
          members([&](int m, const SequencePlan& owner, const Shard& o) {
            attention_unpack_rows_add(context, o.grad_key, o.grad_value, chunk(grads, m, 0),
                                      chunk(grads, m, 1),
                                      local_rows(owner, branch, gathered.segment),
                                      layout.row_slot(m), task, options_of(owner));
          });
        }
      }
    }
  }
  return r;
}

TEST(Attention, GatheredRanksEqualOneRank) {
  for (Position position : {Position::kNone, Position::kRope, Position::kXpos})
    for (bool causal : {true, false})
      for (auto [ranks, tokens] : {std::pair{2, 64}, {3, 100}, {4, 97}, {8, 50}, {5, 6}}) {
        Problem p;
        p.batch = 2;
        p.tokens = tokens;
        p.heads = 3;
        p.head_dim = 24;
        p.branches = {{8, 1}, {30, 2}, {64, 5}, {1000, 12}, {1000, 1}};
        p.causal = causal;
        p.rotary.position = position;
        p.seed = uint64_t(ranks);
        const Isa isa = Context().isa();
        const Result one = naive<double>(p), plain = naive<float>(p);
        expect_as_good_as_plain(run_ranks(p, ranks, isa), one, plain,
                                fmt::format("{} ranks, {}", ranks, p.name()));
        p.first_visible.assign(p.batch * p.tokens, 0);
        for (int64_t i = 0; i < p.batch * p.tokens; ++i)
          p.first_visible[i] = i % p.tokens / 20 * 20;
        EXPECT_LE(golden_ratio(run_ranks(p, ranks, isa), naive<double>(p)), 1)
            << ranks << " ranks with documents, " << p.name();
      }
}

TEST(Attention, SegmentsLongerThanOneChunk) {
  // D = 256 packs 528 keys at once: 1100 keys are three chunks; 1 and 3 threads divide pieces
  // otherwise.
  for (auto [threads, causal] : {std::pair{1, true}, {2, false}, {3, true}}) {
    Problem p;
    p.tokens = 1100;
    p.heads = 1;
    p.head_dim = 200;
    p.branches = {{2000, 1}};
    p.causal = causal;
    p.threads = threads;
    p.rotary.position = Position::kRope;
    const Isa isa = Context().isa();
    EXPECT_LE(golden_ratio(run(p, &isa), naive<double>(p)), 1) << threads << " threads";
  }
}

TEST(Attention, ThreadTimingDoesNotMatter) {
  for (int threads : {1, 2, 3, 5}) {
    Problem p;
    p.tokens = 700;
    p.heads = 2;
    p.head_dim = 32;
    p.branches = {{128, 1}, {700, 1}, {700, 3}};
    p.threads = threads;
    const Isa isa = Context().isa();
    const Result first = run(p, &isa);
    EXPECT_LE(golden_ratio(first, naive<double>(p)), 1);
    for (int repeat = 0; repeat < 3; ++repeat) {
      const Result again = run(p, &isa);
      for (const Named& n : pairs_of(again, first))
        EXPECT_TRUE(std::memcmp(n.actual.data(), n.expected.data(), 4 * n.actual.size()) == 0)
            << n.name << ", " << threads << " threads";
    }
    // The forward does not even depend on the number of threads.
    p.threads = 1;
    const Result single = run(p, &isa);
    EXPECT_EQ(difference(first.out, single.out).max_difference, 0) << threads;
    EXPECT_EQ(difference(first.lse, single.lse).max_difference, 0) << threads;
  }
}

TEST(Attention, FarTokensGiveTheSame) {
  for (Position position : {Position::kRope, Position::kXpos}) {
    Problem p;
    p.tokens = 150;
    p.heads = 3;
    p.head_dim = 64;
    p.branches = {{64, 1}, {150, 2}};
    p.rotary.position = position;
    const Isa isa = Context().isa();
    const Result near = run(p, &isa);
    for (int64_t shift : {int64_t{1} << 20, int64_t{1000000000}, int64_t{1} << 40})
      EXPECT_EQ(golden_ratio(run(p, &isa, shift), near), 0) << shift;
  }
}

TEST(Attention, OriginDoesNotMatter) {
  // Identical rows with positions measured from far away: RoPE angles must stay exact.
  const int64_t n = 60, h = 2, d = 32;
  Values q = random_values(n * h * d, 1), k = random_values(n * h * d, 2),
         v = random_values(n * h * d, 3);
  Context context;
  RotaryOptions rope{Position::kRope, 10000, 512};
  const RotaryTable table(d, rope);
  const SequencePlan plan(n, 1, 0, h, {{n, 1}}, HeadOffset::kInterleaved);
  const std::vector<int64_t> offsets = plan.head_offsets(0);
  AttentionOptions options;
  options.head_offset = offsets;
  options.rotary = &table;
  options.scale = 0.2f;
  Values near;
  for (int64_t distance : {int64_t{0}, int64_t{1} << 20, int64_t{1000000000}}) {
    Values out(n * h * d), lse(n * h);
    std::vector<SegmentTask> tasks =
        local_segment_tasks(plan, 0, view4(k, 1, n, h, d), view4(v, 1, n, h, d), {}, {});
    tasks[0].origin -= distance;
    Arena arena("test");
    const TensorView out_view = view4(out, 1, n, h, d),
                     lse_view(lse.data(), DType::kF32, {1, h, n});
    attention_begin(context, out_view, lse_view);
    attention_forward(
        context, {out_view, lse_view, view4(q, 1, n, h, d), tasks}, options,
        arena.allocate_bytes(attention_workspace_bytes(context, {.head_dim = d}, tasks, false)));
    if (distance == 0) near = out;
    EXPECT_LE(error_ratio(difference(out, near)), 1) << distance;
  }
}

TEST(Attention, StridedViewsOfAFusedBuffer) {
  const int64_t b = 2, n = 75, h = 3, d = 20, c = h * d;
  Problem p;
  p.batch = b;
  p.tokens = n;
  p.heads = h;
  p.head_dim = d;
  p.branches = {{75, 1}, {40, 2}};
  p.rotary.position = Position::kRope;
  p.fill_random();
  const Isa isa = Context().isa();
  const Result expected = run(p, &isa);
  Values fused(b * n * 3 * c), grads(b * n * 3 * c);
  for (int64_t t = 0; t < b * n; ++t) {
    std::copy_n(&p.query[t * c], c, &fused[t * 3 * c]);
    std::copy_n(&p.key[t * c], c, &fused[t * 3 * c + c]);
    std::copy_n(&p.value[t * c], c, &fused[t * 3 * c + 2 * c]);
  }
  const auto part = [&](Values& values, int64_t which) {
    TensorView view(values.data() + which * c, DType::kF32, {b, n, h, d});
    view.stride = {n * 3 * c, 3 * c, d, 1};
    return view;
  };
  Context context({{}, 2, false});
  const RotaryTable rotary(d, p.rotary);
  const SequencePlan plan(n, 1, 0, h, p.branches, p.mode);
  Result r{Values(b * n * c), Values(b * h * n), {}, {}, {}};
  Values delta_values(b * h * n);
  const TensorView out = view4(r.out, b, n, h, d), lse(r.lse.data(), DType::kF32, {b, h, n});
  const TensorView delta(delta_values.data(), DType::kF32, {b, h, n});
  const TensorView grad_out = view4(p.grad_out, b, n, h, d);
  attention_begin(context, out, lse);
  Arena arena("test");
  for (int pass = 0; pass < 2; ++pass) {
    if (pass == 1) attention_delta(context, delta, grad_out, out);
    for (int branch = 0; branch < 2; ++branch) {
      const std::vector<int64_t> offsets = plan.head_offsets(branch);
      const AttentionOptions options = make_options(p, p.branches[branch], offsets, &rotary);
      const auto tasks = local_segment_tasks(plan, branch, part(fused, 1), part(fused, 2),
                                             part(grads, 1), part(grads, 2));
      void* workspace = arena.allocate_bytes(
          attention_workspace_bytes(context, {.head_dim = d}, tasks, pass == 1));
      if (pass == 0)
        attention_forward(context, {out, lse, part(fused, 0), tasks}, options, workspace);
      else
        attention_backward(context, {part(grads, 0), grad_out, lse, delta, part(fused, 0), tasks},
                           options, workspace);
    }
  }
  r.grad_query.resize(b * n * c);
  r.grad_key.resize(b * n * c);
  r.grad_value.resize(b * n * c);
  for (int64_t t = 0; t < b * n; ++t) {
    std::copy_n(&grads[t * 3 * c], c, &r.grad_query[t * c]);
    std::copy_n(&grads[t * 3 * c + c], c, &r.grad_key[t * c]);
    std::copy_n(&grads[t * 3 * c + 2 * c], c, &r.grad_value[t * c]);
  }
  EXPECT_EQ(golden_ratio(r, expected), 0);
}

TEST(Attention, ReferenceBackwardByFiniteDifferences) {
  for (Position position : {Position::kNone, Position::kRope, Position::kXpos}) {
    Problem p;
    p.tokens = 9;
    p.heads = 2;
    p.head_dim = 8;
    p.branches = {{4, 1}, {9, 2}, {9, 1}};
    p.rotary.position = position;
    p.rotary.xpos_scale_base = 16;
    const Result analytic = run(p, nullptr);
    // Central differences of sum(out * grad_out) with the float32 step that was really taken.
    const auto loss = [&] {
      const Result r = naive<double>(p);
      double sum = 0;
      for (size_t i = 0; i < r.out.size(); ++i) sum += double(r.out[i]) * p.grad_out[i];
      return sum;
    };
    const auto check = [&](Values& x, const Values& gradient, const char* name) {
      for (size_t i = 0; i < x.size(); i += 5) {
        const float middle = x[i], step = 1.0f / 64;
        x[i] = middle + step;
        const double above = loss(), plus = x[i];
        x[i] = middle - step;
        const double below = loss(), minus = x[i];
        x[i] = middle;
        EXPECT_NEAR((above - below) / (plus - minus), gradient[i], 2e-3) << name << " " << i;
      }
    };
    check(p.query, analytic.grad_query, "query");
    check(p.key, analytic.grad_key, "key");
    check(p.value, analytic.grad_value, "value");
  }
}

TEST(Attention, LargeScoresAndNaN) {
  Problem p;
  p.tokens = 90;
  p.head_dim = 32;
  p.branches = {{90, 1}, {32, 2}};
  p.fill_random();
  for (float& x : p.query)
    x *= 40;  // scores of some hundreds: weights underflow, nothing overflows
  for (Isa isa : instruction_sets()) {
    expect_as_good_as_plain(run(p, &isa), naive<double>(p), naive<float>(p), isa_name(isa));
    Problem broken = p;
    broken.key[5] = NAN;  // head 0, token 0, seen by all
    const Result r = run(broken, &isa);
    EXPECT_TRUE(std::isnan(r.out[p.elements() - 2 * p.head_dim])) << "a NaN must not vanish";
  }
}

TEST(Attention, CountsKeptPairs) {
  for (Problem& p : problems()) {
    double pairs = 0;
    for (int64_t h = 0; h < p.heads; ++h)
      for (const auto& [w, r] : p.branches) {
        const int64_t offset = head_offset(h, p.heads, r, p.mode);
        for (int64_t t = 0; t < p.tokens; ++t)
          for (int64_t u = 0; u <= (p.causal ? t : p.tokens - 1); ++u)
            pairs += t / w == u / w && t % w % r == offset && u % w % r == offset;
      }
    pairs *= double(p.batch);
    // Pointers that must not be touched.
    Context context({{}, 1, true});
    const auto fake = [&](std::initializer_list<int64_t> shape) {
      return TensorView(reinterpret_cast<void*>(0x1000), DType::kF32, shape);
    };
    const TensorView rows = fake({p.batch, p.tokens, p.heads, p.head_dim});
    const TensorView lse = fake({p.batch, p.heads, p.tokens});
    const SequencePlan plan(p.tokens, 1, 0, p.heads, p.branches, p.mode);
    for (int branch = 0; branch < int(p.branches.size()); ++branch) {
      const std::vector<int64_t> offsets = plan.head_offsets(branch);
      AttentionOptions options;
      options.dilation = p.branches[branch].dilation;
      options.head_offset = offsets;
      options.causal = p.causal;
      const auto tasks = local_segment_tasks(plan, branch, rows, rows, rows, rows);
      attention_forward(context, {rows, lse, rows, tasks}, options, nullptr);
      attention_backward(context, {rows, rows, lse, lse, rows, tasks}, options, nullptr);
    }
    EXPECT_EQ(context.work().attention_flops, 12.0 * double(p.head_dim) * pairs) << p.name();
  }
}

TEST(Attention, GatheredCountsAddUpToOneRank) {
  // Sum over ranks of kept pairs = the pairs of one rank.
  double flops[2] = {};
  for (int ranks : {1, 4}) {
    for (int rank = 0; rank < ranks; ++rank) {
      const SequencePlan plan(101, ranks, rank, 3, {{40, 3}}, HeadOffset::kInterleaved);
      Context context({{}, 1, true});
      const auto fake = [](std::initializer_list<int64_t> shape) {
        return TensorView(reinterpret_cast<void*>(0x1000), DType::kF32, shape);
      };
      const int64_t n = plan.local_tokens();
      const TensorView rows = fake({1, n, 3, 8}), lse = fake({1, 3, n});
      const std::vector<int64_t> offsets = plan.head_offsets(0);
      AttentionOptions options;
      options.dilation = 3;
      options.head_offset = offsets;
      attention_forward(context,
                        {rows, lse, rows, local_segment_tasks(plan, 0, rows, rows, {}, {})},
                        options, nullptr);
      for (const GatheredSegment& gathered : plan.gathered_segments(0)) {
        const GatherLayout layout(plan, 0, gathered, 1, 8);
        const SegmentTask task =
            gathered_segment_task(plan, 0, gathered, layout, fake({layout.elements()}), {});
        attention_forward(context, {rows, lse, rows, {&task, 1}}, options, nullptr);
      }
      flops[ranks > 1] += context.work().attention_flops;
    }
  }
  EXPECT_EQ(flops[0], flops[1]);
  EXPECT_GT(flops[0], 0);
}

TEST(Attention, JoinedRanksCountAsTheirList) {
  // Workspace and FLOPs of a plan that lists no ranks, on every rank of uneven sequences.
  Context context({{}, 1, true});
  for (const int64_t tokens : {97, 256, 1000})
    for (const int ranks : {2, 3, 7, 16})
      for (const Branch branch :
           {Branch{tokens, 1}, Branch{tokens, 3}, Branch{200, 5}, Branch{tokens / 2 + 1, 40}})
        for (int rank = 0; rank < ranks; ++rank) {
          const SequencePlan plan(tokens, ranks, rank, 3, {branch}, HeadOffset::kInterleaved);
          for (const GatheredSegment& gathered : plan.gathered_segments(0)) {
            const GatherLayout layout(plan, 0, gathered, 2, 8);
            const auto fake = [](std::initializer_list<int64_t> shape) {
              return TensorView(reinterpret_cast<void*>(0x1000), DType::kF32, shape);
            };
            const TensorView rows = fake({2, plan.local_tokens(), 3, 8}),
                             lse = fake({2, 3, plan.local_tokens()}),
                             buffer = fake({layout.elements()});
            const std::vector<int64_t> offsets = plan.head_offsets(0);
            AttentionOptions options;
            options.dilation = branch.dilation;
            options.head_offset = offsets;
            std::vector<std::pair<double, int64_t>> found;
            for (const auto sources :
                 {GatheredTask::Sources::kRanks, GatheredTask::Sources::kJoined}) {
              GatheredTask gathered_task(plan, 0, gathered, layout, sources);
              const SegmentTask& task = gathered_task.bind(buffer, buffer);
              context.work().attention_flops = 0;
              for (const bool causal : {true, false}) {
                options.causal = causal;
                attention_forward(context, {rows, lse, rows, {&task, 1}}, options, nullptr);
              }
              found.emplace_back(context.work().attention_flops,
                                 attention_workspace_bytes(context, {2, 8}, {&task, 1}, true));
            }
            ASSERT_EQ(found[0], found[1]) << tokens << " " << ranks << " " << rank;
          }
        }
}

TEST(Attention, CallsProgressOnTheCallingThread) {
  Problem p;
  p.tokens = 300;
  p.fill_random();
  Context context({{}, 2, false});
  const auto caller = std::this_thread::get_id();
  int calls = 0;
  context.set_progress([&] {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    ++calls;
  });
  const SequencePlan plan(p.tokens, 1, 0, p.heads, p.branches, p.mode);
  const std::vector<int64_t> offsets = plan.head_offsets(0);
  AttentionOptions options;
  options.head_offset = offsets;
  const auto view = [&](Values& v) { return view4(v, 1, p.tokens, p.heads, p.head_dim); };
  Values out(p.elements()), lse(p.heads * p.tokens);
  const auto tasks = local_segment_tasks(plan, 0, view(p.key), view(p.value), {}, {});
  Arena arena("test");
  void* workspace =
      arena.allocate_bytes(attention_workspace_bytes(context, {.head_dim = 16}, tasks, false));
  const TensorView lse_view(lse.data(), DType::kF32, {1, p.heads, p.tokens});
  attention_begin(context, view(out), lse_view);
  attention_forward(context, {view(out), lse_view, view(p.query), tasks}, options, workspace);
  EXPECT_GT(calls, 0);
}

TEST(Attention, RefusesWrongArguments) {
  Context context;
  Values values(2 * 8 * 300);
  const std::vector<int64_t> offsets(2, 0);
  AttentionOptions options;
  options.head_offset = offsets;
  const auto attempt = [&](TensorView query, TensorView lse, std::vector<SegmentTask> tasks) {
    attention_forward(context, {query, lse, query, tasks}, options, nullptr);
  };
  const TensorView good(values.data(), DType::kF32, {1, 8, 2, 16});
  const TensorView lse(values.data(), DType::kF32, {1, 2, 8});
  EXPECT_NO_THROW(attempt(good, lse, {}));
  EXPECT_THROW(attempt(TensorView(values.data(), DType::kF32, {1, 8, 2, 7}), lse, {}), Error);
  EXPECT_THROW(attempt(TensorView(values.data(), DType::kF32, {1, 8, 2, 257}), lse, {}), Error);
  EXPECT_THROW(attempt(good, TensorView(values.data(), DType::kF32, {1, 8, 2}), {}), Error);
  SegmentTask task;
  task.segment = {0, 8};
  task.queries = {{0, 0}, {0, 0}, {8, 8}, 1};
  task.keys.push_back({good, good, {}, {}, task.queries, false});
  task.keys[0].rows.count = {9, 8};
  EXPECT_THROW(attempt(good, lse, {task}), Error);
  task.keys[0].rows.count = {8, 8};
  task.keys.push_back(task.keys[0]);  // rows 0..7 twice
  EXPECT_THROW(attempt(good, lse, {task}), Error);
}

}  // namespace
}  // namespace longnet
