// CUDA attention, under the emulator or on a GPU: golden files, the double reference on the shapes
// of the CPU twins, visibility, gathered ranks, far positions, the same bits under every order,
// defects.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>

#include "core/bf16.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/segment_tasks.h"
#include "simt/device_runtime_emulated.h"
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

/// One attention problem on a whole sequence.
struct Problem {
  int64_t batch = 1, tokens = 64, heads = 2, head_dim = 16;
  std::vector<Branch> branches = {{64, 1}};
  bool causal = true;
  HeadOffset mode = HeadOffset::kInterleaved;
  RotaryOptions rotary;
  uint64_t seed = 1;
  std::vector<int64_t> first_visible, last_visible;  // [B, N] or empty
  Values query, key, value, grad_out;                // [B, N, H, D]; empty: random
  // What the GPU reads, query to grad_out. bf16: all four are rounded first, so the reference sees
  // the same numbers in f32.
  DType dtype = DType::kF32, chunk_dtype = DType::kF32;
  std::vector<bf16> rounded[4];

  int64_t elements() const { return batch * tokens * heads * head_dim; }
  void fill_random() {
    if (query.empty()) draw();
    if (dtype == DType::kF32) return;
    for (int i = 0; i < 4; ++i) {
      Values& values = *inputs()[i];
      rounded[i].clear();
      for (float& x : values) {
        rounded[i].push_back(to_bf16(x));
        x = to_float(rounded[i].back());
      }
    }
  }
  std::vector<Values*> inputs() { return {&query, &key, &value, &grad_out}; }
  /// One of the inputs as the GPU (true) or the reference reads it.
  TensorView input(Values& v, bool gpu) {
    if (!gpu || dtype == DType::kF32) return view(v);
    for (int i = 0; i < 4; ++i)
      if (inputs()[i] == &v)
        return TensorView(rounded[i].data(), dtype, {batch, tokens, heads, head_dim});
    throw std::logic_error("not an input");
  }
  void draw() {
    query = random_values(elements(), seed);
    key = random_values(elements(), seed + 1000);
    value = random_values(elements(), seed + 2000);
    grad_out = random_values(elements(), seed + 3000);
  }
  TensorView view(Values& v) const {
    return TensorView(v.data(), DType::kF32, {batch, tokens, heads, head_dim});
  }
  TensorView row_view(Values& v) const {
    return TensorView(v.data(), DType::kF32, {batch, heads, tokens});
  }
  AttentionOptions options(const Branch& branch, const std::vector<int64_t>& offsets,
                           const RotaryTable* table) const {
    AttentionOptions o;
    o.dilation = branch.dilation;
    o.head_offset = offsets;
    o.rotary = table;
    o.scale = static_cast<float>(1.0 / std::sqrt(double(head_dim)));
    o.causal = causal;
    const auto limit = [&](const std::vector<int64_t>& v) {
      return v.empty() ? TensorView()
                       : TensorView(const_cast<int64_t*>(v.data()), DType::kI64, {batch, tokens});
    };
    o.first_visible = limit(first_visible);
    o.last_visible = limit(last_visible);
    return o;
  }
  std::string name() const {
    std::string text = fmt::format("B{} N{} H{} D{} {} position {}", batch, tokens, heads, head_dim,
                                   causal ? "causal" : "full", int(rotary.position));
    for (const Branch& b : branches) text += fmt::format(" ({}, {})", b.segment_length, b.dilation);
    return text;
  }
};

struct Result {
  Values out, lse, grad_query, grad_key, grad_value;
  std::vector<const Values*> all() const {
    return {&out, &lse, &grad_query, &grad_key, &grad_value};
  }
};

/// Copies in GPU memory of whole host tensors: the tests' arithmetic keeps vectors, kernels get the
/// copies. They have exactly the tensors' bytes, so that ASan guards the ends.
class OnGpu {
 public:
  explicit OnGpu(Context& context) : context_(context) {}
  /// The same view of the copy, which is made when its tensor first comes.
  TensorView operator()(const TensorView& host) {
    if (!host.defined()) return host;
    Copy& copy = copies_[host.data];
    if (!copy.data) {
      copy.bytes = host.bytes();
      copy.data.reset(device_runtime::allocate(copy.bytes));
      LN_CHECK(copy.data != nullptr, "no GPU memory for {} bytes", copy.bytes);
      device_runtime::copy_to_device(copy.data.get(), host.data, copy.bytes, context_.stream());
      context_.wait();
    }
    TensorView view = host;
    view.data = copy.data.get();
    view.device = kGpu;
    return view;
  }
  /// The host's tensors get what the copies hold by now.
  void download() {
    for (auto& [host, copy] : copies_)
      device_runtime::copy_to_host(host, copy.data.get(), copy.bytes, context_.stream());
    context_.wait();
  }

 private:
  struct Free {
    void operator()(void* data) const noexcept { device_runtime::free(data); }
  };
  struct Copy {
    std::unique_ptr<void, Free> data;
    int64_t bytes = 0;
  };
  Context& context_;
  std::map<void*, Copy> copies_;
};

/// Scratch, NaN: nothing may be read before it is written.
DeviceValues workspace_of(int64_t bytes) {
  return DeviceValues(DType::kF32, std::max<int64_t>(1, (bytes + 3) / 4));
}

/// All branches on one rank by the CUDA twin or by the reference. shift: added to global tokens.
Result run(Problem& p, bool gpu, int64_t shift = 0) {
  p.fill_random();
  Context context = gpu ? gpu_context() : Context();
  OnGpu copies(context);
  const auto at = [&](const TensorView& host) { return gpu ? copies(host) : host; };
  const auto view = [&](Values& v) { return at(p.view(v)); };
  const auto row_view = [&](Values& v) { return at(p.row_view(v)); };
  const auto input = [&](Values& v) { return at(p.input(v, gpu)); };
  const SequencePlan plan(p.tokens, 1, 0, p.heads, p.branches, p.mode);
  const RotaryTable table(p.head_dim, p.rotary);
  const int64_t n = p.elements();
  Result r{Values(n, NAN), Values(p.batch * p.heads * p.tokens, NAN), Values(n), Values(n),
           Values(n)};
  Values delta(r.lse.size(), NAN);
  if (gpu) {
    cuda::attention_begin(context, view(r.out), row_view(r.lse));
  } else {
    std::fill(r.out.begin(), r.out.end(), 0.0f);
    std::fill(r.lse.begin(), r.lse.end(), -INFINITY);
  }
  for (int pass = 0; pass < 2; ++pass) {
    if (pass == 1 && gpu)
      cuda::attention_delta(context, row_view(delta), input(p.grad_out), view(r.out));
    if (pass == 1 && !gpu)
      reference::attention_delta(row_view(delta), view(p.grad_out), view(r.out));
    for (int branch = 0; branch < int(p.branches.size()); ++branch) {
      const std::vector<int64_t> offsets = plan.head_offsets(branch);
      AttentionOptions options = p.options(p.branches[branch], offsets, &table);
      options.first_visible = at(options.first_visible);
      options.last_visible = at(options.last_visible);
      std::vector<SegmentTask> tasks = local_segment_tasks(
          plan, branch, input(p.key), input(p.value), view(r.grad_key), view(r.grad_value));
      for (SegmentTask& task : tasks) {
        task.segment.begin += shift;
        task.segment.end += shift;
        task.origin += shift;
      }
      const AttentionForward forward{view(r.out), row_view(r.lse), input(p.query), tasks};
      const AttentionBackward backward{view(r.grad_query), input(p.grad_out), row_view(r.lse),
                                       row_view(delta),    input(p.query),    tasks};
      if (!gpu && pass == 0) reference::attention_forward(forward, options);
      if (!gpu && pass == 1) reference::attention_backward(backward, options);
      if (!gpu) continue;
      const DeviceValues w =
          workspace_of(cuda::attention_workspace_bytes(context, p.head_dim, tasks, pass == 1));
      if (pass == 0) cuda::attention_forward(context, forward, options, w.data());
      if (pass == 1) cuda::attention_backward(context, backward, options, w.data());
      context.wait();
    }
  }
  if (gpu) copies.download();
  return r;
}

/// Largest error as a share of the golden rule's allowance; <= 1 passes.
double golden_ratio(const Result& actual, const Result& expected) {
  double largest = 0, worst = 0;
  for (const Values* v : {&expected.grad_query, &expected.grad_key, &expected.grad_value})
    for (float x : *v) largest = std::max(largest, std::abs(double(x)));
  for (size_t i = 0; i < 5; ++i)
    worst = std::max(
        worst, error_ratio(difference(*actual.all()[i], *expected.all()[i]), i >= 2 ? largest : 0));
  return worst;
}
bool same_bits(const Result& a, const Result& b) {
  for (size_t i = 0; i < 5; ++i)
    if (std::memcmp(a.all()[i]->data(), b.all()[i]->data(), 4 * a.all()[i]->size()) != 0)
      return false;
  return true;
}

TEST(AttentionSimt, GoldenFiles) {
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
    EXPECT_LE(golden_ratio(run(p, true), expected), 1) << name;
  }
}

/// The shapes of the CPU twins' tests.
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
  add(1, 1, 1, 8, {{1, 1}}, true, kInterleaved, none);
  add(1, 1, 3, 16, {{4, 1}, {8, 2}}, true, kInterleaved, rope);
  add(2, 2, 1, 32, {{2, 1}}, false, kInterleaved, xpos);
  add(1, 3, 2, 12, {{7, 2}}, true, kBlocked, none);
  add(3, 17, 5, 8, {{8, 3}, {17, 2}}, true, kInterleaved, rope);
  add(1, 65, 1, 16, {{65, 1}}, true, kInterleaved, none);
  add(1, 63, 2, 64, {{63, 1}}, false, kInterleaved, none);
  add(1, 100, 2, 64, {{48, 1}, {100, 2}}, true, kInterleaved, xpos);
  add(2, 97, 3, 40, {{32, 1}, {64, 4}}, true, kBlocked, rope);
  add(1, 130, 4, 64, {{130, 1}}, true, kInterleaved, rope);
  add(1, 130, 2, 80, {{130, 1}, {64, 3}}, true, kInterleaved, none);
  add(1, 70, 2, 96, {{70, 1}}, false, kBlocked, rope);
  add(1, 150, 1, 128, {{150, 1}}, true, kInterleaved, xpos);
  add(1, 70, 2, 256, {{64, 1}}, true, kInterleaved, rope);
  add(1, 60, 2, 192, {{60, 2}}, false, kInterleaved, none);
  add(1, 50, 1, 111, {{50, 1}}, true, kInterleaved, none);
  add(1, 50, 1, 33, {{20, 2}}, true, kInterleaved, none);
  add(1, 64, 7, 16, {{8, 12}, {4, 6}}, true, kInterleaved, none);
  add(1, 64, 2, 16, {{16, 4}, {64, 8}}, true, kInterleaved, xpos);
  add(2, 300, 2, 32, {{256, 1}, {300, 4}}, true, kInterleaved, rope);
  add(1, 260, 3, 48, {{300, 1}}, false, kInterleaved, none);
  add(1, 321, 1, 64, {{321, 1}}, true, kInterleaved, xpos);
  return list;
}

TEST(AttentionSimt, AgreesWithReference) {
  int index = 0;
  for (Problem& p : problems()) {
    ++index;
    simt::set_order(kOrders[index % 4], uint64_t(index));
    EXPECT_LE(golden_ratio(run(p, true), run(p, false)), 1) << p.name();
  }
  simt::set_order(simt::Order::kAscending, 1);
}

/// Three key tiles and a tail, two segments, dilation, heads with different offsets, rotation.
Problem middle() {
  Problem p;
  p.tokens = 210;
  p.heads = 2;
  p.head_dim = 24;
  p.branches = {{110, 1}, {210, 2}};
  p.rotary.position = Position::kXpos;
  p.rotary.xpos_scale_base = 64;
  return p;
}

TEST(AttentionSimt, SameBitsUnderEveryOrder) {
  Problem p = middle();
  const Result expected = run(p, false);
  Result first;
  under_every_order(11, [&](simt::Order order) {
    const Result r = run(p, true);
    EXPECT_LE(golden_ratio(r, expected), 1) << simt::order_name(order);
    if (order == simt::Order::kAscending) first = r;
    EXPECT_TRUE(same_bits(first, r)) << simt::order_name(order);
  });
}

TEST(AttentionSimt, Visibility) {
  for (int variant = 0; variant < 4; ++variant) {
    Problem p;
    p.batch = 2;
    p.tokens = 140;
    p.heads = 3;
    p.head_dim = 16;
    p.branches = {{64, 1}, {140, 3}};
    p.causal = variant % 2 == 0;
    p.seed = 50 + variant;
    std::mt19937_64 random(variant);
    p.first_visible.resize(p.batch * p.tokens);
    p.last_visible.resize(p.batch * p.tokens);
    for (int64_t i = 0; i < p.batch * p.tokens; ++i) {
      const int64_t t = i % p.tokens;
      if (variant < 2) {  // documents of 50 tokens
        p.first_visible[i] = t / 50 * 50;
        p.last_visible[i] = t / 50 * 50 + 49;
      } else {  // anything, with empty ranges and limits far outside
        p.first_visible[i] = random() % 5 == 0 ? INT64_MIN : int64_t(random() % 160) - 10;
        p.last_visible[i] = random() % 5 == 0 ? INT64_MAX : int64_t(random() % 160) - 10;
      }
    }
    EXPECT_LE(golden_ratio(run(p, true), run(p, false)), 1) << variant;
    Problem first = p, last = p;
    first.last_visible.clear();
    last.first_visible.clear();
    EXPECT_LE(golden_ratio(run(first, true), run(first, false)), 1) << variant;
    EXPECT_LE(golden_ratio(run(last, true), run(last, false)), 1) << variant;
  }
}

TEST(AttentionSimt, FarTokensGiveTheSame) {
  for (Position position : {Position::kRope, Position::kXpos}) {
    Problem p;
    p.tokens = 70;
    p.heads = 3;
    p.head_dim = 32;
    p.branches = {{64, 1}, {70, 2}};
    p.rotary.position = position;
    const Result near = run(p, true);
    for (int64_t shift : {int64_t{1000000000}, int64_t{1} << 40})
      EXPECT_TRUE(same_bits(run(p, true, shift), near)) << shift;
  }
}

TEST(AttentionSimt, NaNAndLargeScores) {
  Problem p;
  p.tokens = 90;
  p.head_dim = 32;
  p.branches = {{90, 1}, {32, 2}};
  p.fill_random();
  for (float& x : p.query) x *= 40;
  // Scores of hundreds in float: errors of the exponent's argument, not of this kernel.
  EXPECT_LE(golden_ratio(run(p, true), run(p, false)), 20);
  p.key[5] = NAN;  // head 0, token 0, seen by all
  EXPECT_TRUE(std::isnan(run(p, true).out[p.elements() - 2 * p.head_dim])) << "must not vanish";
}

/// P ranks one after the other, chunks copied by hand: what the sequence exchange does.
Result run_ranks(Problem& p, int ranks) {
  p.fill_random();
  Context context = gpu_context();
  OnGpu at(context);
  const auto view = [&](Values& v) { return at(p.view(v)); };
  const auto row_view = [&](Values& v) { return at(p.row_view(v)); };
  const RotaryTable table(p.head_dim, p.rotary);
  const int64_t n = p.elements();
  Result r{Values(n), Values(p.batch * p.heads * p.tokens), Values(n), Values(n), Values(n)};
  Values delta(r.lse.size());
  cuda::attention_begin(context, view(r.out), row_view(r.lse));
  std::vector<SequencePlan> plans;
  for (int rank = 0; rank < ranks; ++rank)
    plans.emplace_back(p.tokens, ranks, rank, p.heads, p.branches, p.mode);
  for (int pass = 0; pass < 2; ++pass) {
    if (pass == 1)
      cuda::attention_delta(context, row_view(delta), at(p.input(p.grad_out, true)), view(r.out));
    for (int branch = 0; branch < int(p.branches.size()); ++branch) {
      const std::vector<int64_t> offsets = plans[0].head_offsets(branch);
      const AttentionOptions all = p.options(p.branches[branch], offsets, &table);
      const auto part = [&](const SequencePlan& plan, Values& v) {
        return view(v).slice(1, plan.local_begin(), plan.local_tokens());
      };
      const auto input_part = [&](const SequencePlan& plan, Values& v) {
        return at(p.input(v, true)).slice(1, plan.local_begin(), plan.local_tokens());
      };
      const auto row_part = [&](const SequencePlan& plan, Values& v) {
        return row_view(v).slice(2, plan.local_begin(), plan.local_tokens());
      };
      const auto options_of = [&](const SequencePlan& plan) {
        AttentionOptions o = all;
        for (TensorView* limit : {&o.first_visible, &o.last_visible})
          if (limit->defined())
            *limit = at(*limit).slice(1, plan.local_begin(), plan.local_tokens());
        return o;
      };
      const auto attend = [&](const SequencePlan& plan, std::span<const SegmentTask> tasks) {
        const DeviceValues w =
            workspace_of(cuda::attention_workspace_bytes(context, p.head_dim, tasks, pass == 1));
        if (pass == 0)
          cuda::attention_forward(
              context, {part(plan, r.out), row_part(plan, r.lse), input_part(plan, p.query), tasks},
              options_of(plan), w.data());
        else
          cuda::attention_backward(
              context,
              {part(plan, r.grad_query), input_part(plan, p.grad_out), row_part(plan, r.lse),
               row_part(plan, delta), input_part(plan, p.query), tasks},
              options_of(plan), w.data());
        context.wait();
      };
      for (const SequencePlan& plan : plans) {
        if (plan.local_tokens() > 0)
          attend(plan, local_segment_tasks(plan, branch, input_part(plan, p.key),
                                           input_part(plan, p.value), part(plan, r.grad_key),
                                           part(plan, r.grad_value)));
        for (const GatheredSegment& gathered : plan.gathered_segments(branch)) {
          const GatherLayout layout(plan, branch, gathered, p.batch, p.head_dim);
          Values buffer_values(layout.elements(), NAN), grad_values(layout.elements());
          std::vector<bf16> buffer_rounded(layout.elements(), to_bf16(NAN));
          OnGpu chunks_at(context);  // of this segment: the next one's may take the same addresses
          const TensorView buffer = chunks_at(
              TensorView(p.chunk_dtype == DType::kBF16 ? static_cast<void*>(buffer_rounded.data())
                                                       : buffer_values.data(),
                         p.chunk_dtype, {layout.elements()}));
          const TensorView grads =
              chunks_at(TensorView(grad_values.data(), DType::kF32, {layout.elements()}));
          const auto chunk = [&](const TensorView& whole, int member, int which) {
            const int64_t rows = layout.chunk_rows(member);
            return whole.slice(0, layout.chunk_begin(member), layout.chunk_elements(member))
                .view({2, p.batch, rows, p.head_dim})
                .slice(0, which, 1)
                .view({p.batch, rows, p.head_dim});
          };
          SegmentTask owned;
          owned.segment = gathered.segment;
          for (int rank = gathered.first_rank; rank <= gathered.last_rank; ++rank) {
            const int m = rank - gathered.first_rank;
            if (layout.chunk_rows(m) == 0) continue;
            owned.origin = segment_origin(plans[rank], branch, gathered.segment);
            cuda::attention_pack_rows(
                context, chunk(buffer, m, 0), chunk(buffer, m, 1), input_part(plans[rank], p.key),
                input_part(plans[rank], p.value), local_rows(plans[rank], branch, gathered.segment),
                layout.row_slot(m), owned, options_of(plans[rank]));
          }
          const SegmentTask task =
              gathered_segment_task(plan, branch, gathered, layout, buffer, grads);
          attend(plan, {&task, 1});
          if (pass == 0) continue;
          for (int rank = gathered.first_rank; rank <= gathered.last_rank; ++rank) {
            const int m = rank - gathered.first_rank;
            if (layout.chunk_rows(m) == 0) continue;
            cuda::attention_unpack_rows_add(context, part(plans[rank], r.grad_key),
                                            part(plans[rank], r.grad_value), chunk(grads, m, 0),
                                            chunk(grads, m, 1),
                                            local_rows(plans[rank], branch, gathered.segment),
                                            layout.row_slot(m), task, options_of(plans[rank]));
          }
          context.wait();
        }
      }
    }
  }
  at.download();
  return r;
}

Problem gathered_problem(int tokens) {
  Problem p;
  p.batch = 2;
  p.tokens = tokens;
  p.heads = 3;
  p.head_dim = 24;
  p.branches = {{8, 1}, {30, 2}, {64, 5}, {1000, 12}, {1000, 1}};
  return p;
}

TEST(AttentionSimt, GatheredRanksEqualOneRank) {
  int index = 0;
  for (Position position : {Position::kNone, Position::kRope, Position::kXpos})
    for (auto [ranks, tokens] : {std::pair{2, 64}, {3, 100}, {5, 6}}) {
      Problem p = gathered_problem(tokens);
      p.causal = ++index % 2 == 0;
      p.rotary.position = position;
      p.seed = uint64_t(ranks);
      EXPECT_LE(golden_ratio(run_ranks(p, ranks), run(p, false)), 1) << ranks << " " << p.name();
    }
  Problem p = gathered_problem(100);
  p.first_visible.assign(p.batch * p.tokens, 0);
  for (int64_t i = 0; i < p.batch * p.tokens; ++i) p.first_visible[i] = i % p.tokens / 20 * 20;
  EXPECT_LE(golden_ratio(run_ranks(p, 3), run(p, false)), 1) << "documents";
}

TEST(AttentionSimt, MoreHeadsThanOnePackLaunchHolds) {
  Problem p = gathered_problem(24);
  p.batch = 1;
  p.heads = 40;
  p.head_dim = 9;  // odd
  p.branches = {{24, 2}};
  EXPECT_LE(golden_ratio(run_ranks(p, 2), run(p, false)), 1);
}

// bf16 becomes float exactly, so the tolerance is that of float32.
TEST(AttentionSimt, Bf16InputsAgreeWithReference) {
  int index = 0;
  for (Problem& p : problems()) {
    ++index;
    p.dtype = DType::kBF16;
    simt::set_order(kOrders[index % 4], uint64_t(index));
    EXPECT_LE(golden_ratio(run(p, true), run(p, false)), 1) << p.name();
  }
  simt::set_order(simt::Order::kAscending, 1);
}

TEST(AttentionSimt, Bf16GatheredRanksEqualOneRank) {
  // Without positions a bf16 chunk holds the very numbers of the tokens; rotated keys keep their
  // digits in an f32 chunk only.
  for (auto [position, chunk] : {std::pair{Position::kNone, DType::kBF16},
                                 {Position::kNone, DType::kF32},
                                 {Position::kXpos, DType::kF32}}) {
    Problem p = gathered_problem(100);
    p.rotary.position = position;
    p.dtype = DType::kBF16;
    p.chunk_dtype = chunk;
    EXPECT_LE(golden_ratio(run_ranks(p, 3), run(p, false)), 1) << p.name();
  }
}

/// Packs head 0 and 1 of 9 tokens, rotated, into chunks of this type, as floats.
Values packed(DType from, DType to) {
  Problem p;
  p.tokens = 9;
  p.head_dim = 10;
  p.rotary.position = Position::kXpos;
  p.dtype = DType::kBF16;  // the same numbers whatever `from` is
  p.fill_random();
  const RotaryTable table(p.head_dim, p.rotary);
  const std::vector<int64_t> offsets = {0, 0}, slots = {0, 9};
  const AttentionOptions options = p.options({9, 1}, offsets, &table);
  SegmentTask task;
  task.segment = {0, 9};
  task.origin = 4;
  const HeadRows rows{{0, 0}, {0, 0}, {9, 9}, 1};
  const int64_t n = 18 * p.head_dim;
  Values chunk(2 * n, NAN);
  std::vector<bf16> chunk16(2 * n);
  const auto view = [&](int64_t which) {
    void* data = to == DType::kBF16 ? static_cast<void*>(chunk16.data() + which * n)
                                    : chunk.data() + which * n;
    return TensorView(data, to, {1, 18, p.head_dim});
  };
  Context context = gpu_context();
  OnGpu at(context);
  const bool in_bf16 = from == DType::kBF16;
  cuda::attention_pack_rows(context, at(view(0)), at(view(1)), at(p.input(p.key, in_bf16)),
                            at(p.input(p.value, in_bf16)), rows, slots, task, options);
  at.download();
  if (to == DType::kBF16)
    for (int64_t i = 0; i < 2 * n; ++i) chunk[i] = to_float(chunk16[i]);
  return chunk;
}

TEST(AttentionSimt, PackRoundsOnceToTheChunksType) {
  const Values exact = packed(DType::kF32, DType::kF32);
  Values once = exact;
  for (float& x : once) x = to_float(to_bf16(x));
  ASSERT_NE(once, exact);
  EXPECT_EQ(packed(DType::kBF16, DType::kF32), exact);
  EXPECT_EQ(packed(DType::kF32, DType::kBF16), once);
  EXPECT_EQ(packed(DType::kBF16, DType::kBF16), once);
  const simt::Defect truncates(10);
  EXPECT_NE(packed(DType::kBF16, DType::kBF16), once);
}

TEST(AttentionSimt, DefectsInNumbersAreFound) {
  Problem p = middle();
  const Result expected = run(p, false);
  ASSERT_LE(golden_ratio(run(p, true), expected), 1);
  for (int bug : {4, 6, 8}) {
    const simt::Defect defect(bug);
    EXPECT_GT(golden_ratio(run(p, true), expected), 100) << bug;
  }
}

// A GPU for desktops (compute capability 8.6) has 99 KiB for a block.
TEST(AttentionSimt, WideHeadsNeedAGpuWithTheSharedMemory) {
  const simt::OtherGpu desktop({.minor = 6, .shared_bytes = 99 * 1024});
  Problem p;
  p.heads = 1;
  p.head_dim = 128;
  EXPECT_NO_THROW(run(p, true));
  p.head_dim = 136;
  p.query.clear();
  try {
    run(p, true);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("D 136 takes "), std::string::npos) << text;
    EXPECT_NE(text.find("this GPU has 101376; choose model.dim"), std::string::npos) << text;
  }
}

TEST(AttentionSimt, DivergentBarrierIsFound) {
  Problem p = middle();
  const std::string found = found_with_defect(7, [&] { run(p, true); });
  EXPECT_NE(found.find("divergent barrier: attention_cuda.cu:"), std::string::npos) << found;
}

TEST(AttentionSimt, RacesAreFound) {
  if (!simt::race_checked()) GTEST_SKIP() << "only in the race build";
  Problem p = middle();
  const auto body = [&] { run(p, true); };
  for (int bug : {1, 2, 3}) {
    const std::string found = found_with_defect(bug, body);
    EXPECT_NE(found.find("race: "), std::string::npos) << bug;
    EXPECT_NE(found.find("attention_cuda.cu:"), std::string::npos) << bug << found;
  }
}

TEST(AttentionSimtDeathTest, ColumnsPastTheRowAreFound) {
  if (!simt::address_checked()) GTEST_SKIP() << "only in the ASan build";
  Problem p = gathered_problem(24);
  p.branches = {{24, 1}};
  EXPECT_DEATH(
      {
        const simt::Defect defect(9);
        run_ranks(p, 2);
      },
      "heap-buffer-overflow");
}

}  // namespace
}  // namespace longnet::simt_test
