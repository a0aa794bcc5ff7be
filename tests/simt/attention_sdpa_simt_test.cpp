// Attention through SDPA problems (run.attention=cudnn) on a GPU, or under the emulator with the
// library's stand-in of sdpa_emulated.cpp: our packing, the merge, the way back of gradients, and
// the choice between implementations, against the double reference.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_bench.h"
#include "kernels/attention/attention_cudnn.h"
#include "kernels/attention/attention_pack_cuda.h"
#include "kernels/attention/attention_sdpa.h"
#include "kernels/attention/segment_tasks.h"
#include "simt/device_values.h"
#include "simt/log_text.h"
#include "simt/support.h"
#include "support/compare.h"

namespace longnet::simt_test {
namespace {

[[maybe_unused]] const bool quiet = (spdlog::set_level(spdlog::level::warn), true);

using test::difference;
using test::error_ratio;
using test::random_values;
using Values = std::vector<float>;

// bf16 keeps 8 bits: rotated operands and every branch's results are rounded to 2^-9 of themselves,
// gradients also feel the rounding of the merged out, and cuDNN's those of p and ds. Largest seen
// over all cases below, under the emulator: 0.40 of this for outputs, 0.35 for gradients.
constexpr double kTolerance = 0.012;
// Without positions the scores come from the same bf16 numbers on both sides: lse differs by float
// rounding.
constexpr double kLseTolerance = 1e-5;

struct Problem {
  int64_t batch = 1, tokens = 64, heads = 2, head_dim = 16;
  std::vector<Branch> branches = {{64, 1}};
  bool causal = true;
  HeadOffset mode = HeadOffset::kInterleaved;
  Position position = Position::kNone;
  bool fused = true;              // q, k, v are thirds of one tensor [B, N, 3, H, D]
  DType grad_out = DType::kBF16;  // type of the incoming gradient
  int ranks = 1;
  uint64_t seed = 1;
  bool emulated_only = false;  // too many shapes, each of which costs cuDNN two plans

  int64_t elements() const { return batch * tokens * heads * head_dim; }
  std::string name() const {
    std::string text = fmt::format("B{} N{} H{} D{} {} position {} ranks {}", batch, tokens, heads,
                                   head_dim, causal ? "causal" : "full", int(position), ranks);
    for (const Branch& b : branches) text += fmt::format(" ({}, {})", b.segment_length, b.dilation);
    return text;
  }
};

struct Result {
  Values out, lse, grad_query, grad_key, grad_value;
};

Values rounded(Values values) {
  for (float& v : values) v = to_float(to_bf16(v));
  return values;
}

/// Numbers in host memory.
struct Inputs {
  Values query, key, value, grad_out;
  explicit Inputs(const Problem& p) {
    query = rounded(random_values(p.elements(), p.seed));
    key = rounded(random_values(p.elements(), p.seed + 1000));
    value = rounded(random_values(p.elements(), p.seed + 2000));
    grad_out = rounded(random_values(p.elements(), p.seed + 3000));
  }
};

AttentionOptions options_of(const Problem& p, const Branch& branch,
                            const std::vector<int64_t>& offsets, const RotaryTable& table) {
  AttentionOptions o;
  o.dilation = branch.dilation;
  o.segment_length = branch.segment_length;
  o.head_offset = offsets;
  o.rotary = &table;
  o.scale = static_cast<float>(1.0 / std::sqrt(double(p.head_dim)));
  o.causal = p.causal;
  return o;
}

RotaryTable table_of(const Problem& p) { return RotaryTable(p.head_dim, {p.position, 10000, 64}); }

Result run_reference(const Problem& p) {
  Inputs in(p);
  const SequencePlan plan(p.tokens, 1, 0, p.heads, p.branches, p.mode);
  const RotaryTable table = table_of(p);
  const int64_t n = p.elements();
  Result r{Values(n), Values(p.batch * p.heads * p.tokens, -INFINITY), Values(n), Values(n),
           Values(n)};
  Values delta(r.lse.size());
  const auto view = [&](Values& v) {
    return TensorView(v.data(), DType::kF32, {p.batch, p.tokens, p.heads, p.head_dim});
  };
  const auto rows = [&](Values& v) {
    return TensorView(v.data(), DType::kF32, {p.batch, p.heads, p.tokens});
  };
  for (int pass = 0; pass < 2; ++pass) {
    if (pass == 1) reference::attention_delta(rows(delta), view(in.grad_out), view(r.out));
    for (int k = 0; k < int(p.branches.size()); ++k) {
      const std::vector<int64_t> offsets = plan.head_offsets(k);
      const AttentionOptions options = options_of(p, p.branches[k], offsets, table);
      const auto tasks = local_segment_tasks(plan, k, view(in.key), view(in.value),
                                             view(r.grad_key), view(r.grad_value));
      if (pass == 0)
        reference::attention_forward({view(r.out), rows(r.lse), view(in.query), tasks}, options);
      else
        reference::attention_backward({view(r.grad_query), view(in.grad_out), rows(r.lse),
                                       rows(delta), view(in.query), tasks},
                                      options);
    }
  }
  return r;
}

/// All ranks of the problem, one after the other on one GPU; gathered chunks are packed by the
/// CPU's kernels and their gradients taken home by them: what the sequence exchange does.
Result run_gpu(const Problem& p, AttentionChoice choice = AttentionChoice::kCudnn) {
  Context context = gpu_context(), host({.device = {}, .threads = 1, .counting = false});
  context.set_attention(choice);
  Inputs in(p);
  const int64_t n = p.elements(), c = p.heads * p.head_dim;
  const RotaryTable table = table_of(p);
  Values interleaved(3 * n);
  for (int64_t t = 0; t < p.batch * p.tokens; ++t)
    for (int64_t i = 0; i < c; ++i) {
      interleaved[(3 * t) * c + i] = in.query[t * c + i];
      interleaved[(3 * t + 1) * c + i] = in.key[t * c + i];
      interleaved[(3 * t + 2) * c + i] = in.value[t * c + i];
    }
  const DeviceValues fused(DType::kBF16, interleaved), own_query(DType::kBF16, in.query),
      own_key(DType::kBF16, in.key), own_value(DType::kBF16, in.value),
      grad_out(p.grad_out, in.grad_out);
  const DeviceValues out(DType::kF32, n), lse(DType::kF32, p.batch * p.heads * p.tokens),
      delta(DType::kF32, p.batch * p.heads * p.tokens);  // NaN: not to be read by cuDNN
  const DeviceValues grad_query(DType::kF32, Values(n)), grad_key(DType::kF32, Values(n)),
      grad_value(DType::kF32, Values(n));
  const auto view = [&](const DeviceValues& v) {
    return v.view({p.batch, p.tokens, p.heads, p.head_dim});
  };
  const auto rows = [&](const DeviceValues& v) { return v.view({p.batch, p.heads, p.tokens}); };
  const auto input = [&](const DeviceValues& own, int part) {
    if (!p.fused) return view(own);
    TensorView x(static_cast<char*>(fused.data()) + 2 * part * c, DType::kBF16,
                 {p.batch, p.tokens, p.heads, p.head_dim}, kGpu);
    x.stride = {3 * p.tokens * c, 3 * c, p.head_dim, 1};
    return x;
  };
  std::vector<SequencePlan> plans;
  for (int rank = 0; rank < p.ranks; ++rank)
    plans.emplace_back(p.tokens, p.ranks, rank, p.heads, p.branches, p.mode);
  Values host_grad_key(n), host_grad_value(n);
  std::vector<bf16> host_key(n), host_value(n);
  for (int64_t i = 0; i < n; ++i) {
    host_key[i] = to_bf16(in.key[i]);
    host_value[i] = to_bf16(in.value[i]);
  }
  const auto host_view = [&](auto& values, DType type) {
    return TensorView(values.data(), type, {p.batch, p.tokens, p.heads, p.head_dim});
  };

  attention_begin(context, view(out), rows(lse));
  for (int pass = 0; pass < 2; ++pass) {
    if (pass == 1 && choice != AttentionChoice::kCudnn)
      attention_delta(context, rows(delta), view(grad_out), view(out));
    for (int k = 0; k < int(p.branches.size()); ++k)
      for (const SequencePlan& plan : plans) {
        if (plan.local_tokens() == 0) continue;
        const std::vector<int64_t> offsets = plan.head_offsets(k);
        const AttentionOptions options = options_of(p, p.branches[k], offsets, table);
        const auto part = [&](const TensorView& x) {
          return x.slice(1, plan.local_begin(), plan.local_tokens());
        };
        const auto row_part = [&](const DeviceValues& v) {
          return rows(v).slice(2, plan.local_begin(), plan.local_tokens());
        };
        const auto attend = [&](std::span<const SegmentTask> tasks) {
          const int64_t bytes = attention_workspace_bytes(
              context, {p.batch, p.head_dim, DType::kBF16}, tasks, pass == 1);
          const DeviceValues workspace(DType::kF32, bytes / 4);
          if (pass == 0)
            attention_forward(context,
                              {part(view(out)), row_part(lse), part(input(own_query, 0)), tasks},
                              options, workspace.data());
          else
            attention_backward(context,
                               {part(view(grad_query)), part(view(grad_out)), row_part(lse),
                                row_part(delta), part(input(own_query, 0)), tasks, part(view(out))},
                               options, workspace.data());
          context.wait();
        };
        attend(local_segment_tasks(plan, k, part(input(own_key, 1)), part(input(own_value, 2)),
                                   part(view(grad_key)), part(view(grad_value))));
        for (const GatheredSegment& gathered : plan.gathered_segments(k)) {
          const GatherLayout layout(plan, k, gathered, p.batch, p.head_dim);
          std::vector<bf16> chunks(layout.elements());
          const auto chunk = [&](const TensorView& whole, int member, int which) {
            const int64_t count = layout.chunk_rows(member);
            return whole.slice(0, layout.chunk_begin(member), layout.chunk_elements(member))
                .view({2, p.batch, count, p.head_dim})
                .slice(0, which, 1)
                .view({p.batch, count, p.head_dim});
          };
          const TensorView buffer(chunks.data(), DType::kBF16, {layout.elements()});
          for (int rank = gathered.first_rank; rank <= gathered.last_rank; ++rank) {
            const int m = rank - gathered.first_rank;
            if (layout.chunk_rows(m) == 0) continue;
            const SequencePlan& owner = plans[rank];
            SegmentTask owned;
            owned.segment = gathered.segment;
            owned.origin = segment_origin(owner, k, gathered.segment);
            const auto owners = [&](const TensorView& x) {
              return x.slice(1, owner.local_begin(), owner.local_tokens());
            };
            attention_pack_rows(host, chunk(buffer, m, 0), chunk(buffer, m, 1),
                                owners(host_view(host_key, DType::kBF16)),
                                owners(host_view(host_value, DType::kBF16)),
                                local_rows(owner, k, gathered.segment), layout.row_slot(m), owned,
                                options);
          }
          Values as_floats;
          for (const bf16 x : chunks) as_floats.push_back(to_float(x));
          const DeviceValues on_gpu(DType::kBF16, as_floats),
              grads(DType::kF32, Values(layout.elements()));
          const SegmentTask task =
              gathered_segment_task(plan, k, gathered, layout, on_gpu.flat(), grads.flat());
          attend({&task, 1});
          if (pass == 0) continue;
          Values home = grads.floats();
          const TensorView host_grads(home.data(), DType::kF32, {layout.elements()});
          for (int rank = gathered.first_rank; rank <= gathered.last_rank; ++rank) {
            const int m = rank - gathered.first_rank;
            if (layout.chunk_rows(m) == 0) continue;
            const SequencePlan& owner = plans[rank];
            const auto owners = [&](const TensorView& x) {
              return x.slice(1, owner.local_begin(), owner.local_tokens());
            };
            attention_unpack_rows_add(host, owners(host_view(host_grad_key, DType::kF32)),
                                      owners(host_view(host_grad_value, DType::kF32)),
                                      chunk(host_grads, m, 0), chunk(host_grads, m, 1),
                                      local_rows(owner, k, gathered.segment), layout.row_slot(m),
                                      task, options);
          }
        }
      }
  }
  Result r{out.floats(), lse.floats(), grad_query.floats(), grad_key.floats(), grad_value.floats()};
  for (int64_t i = 0; i < n; ++i) {
    r.grad_key[i] += host_grad_key[i];
    r.grad_value[i] += host_grad_value[i];
  }
  return r;
}

struct Ratios {
  double out, lse, gradients;  // shares of the allowances; <= 1 passes
  double worst() const { return std::max({out, lse, gradients}); }
};
Ratios compare(const Problem& p, const Result& actual, const Result& expected) {
  double largest = 0;
  for (const Values* v : {&expected.grad_query, &expected.grad_key, &expected.grad_value})
    for (const float x : *v) largest = std::max(largest, std::abs(double(x)));
  const auto gradient = [&](const Values& a, const Values& b) {
    return error_ratio(difference(a, b), 10 * largest, kTolerance);
  };
  return {error_ratio(difference(actual.out, expected.out), 0, kTolerance),
          error_ratio(difference(actual.lse, expected.lse), 0,
                      p.position == Position::kNone ? kLseTolerance : kTolerance),
          std::max({gradient(actual.grad_query, expected.grad_query),
                    gradient(actual.grad_key, expected.grad_key),
                    gradient(actual.grad_value, expected.grad_value)})};
}

std::vector<Problem> problems() {
  using enum HeadOffset;
  const Position none = Position::kNone, rope = Position::kRope, xpos = Position::kXpos;
  std::vector<Problem> list;
  const auto add = [&](int64_t b, int64_t n, int64_t h, int64_t d, std::vector<Branch> branches,
                       bool causal, HeadOffset mode, Position position, int ranks = 1) {
    Problem p;
    p.batch = b;
    p.tokens = n;
    p.heads = h;
    p.head_dim = d;
    p.branches = std::move(branches);
    p.causal = causal;
    p.mode = mode;
    p.position = position;
    p.ranks = ranks;
    p.seed = list.size() + 1;
    p.fused = list.size() % 2 == 0;
    p.grad_out = list.size() % 3 == 0 ? DType::kF32 : DType::kBF16;
    list.push_back(p);
  };
  const auto emulated_only = [&] { list.back().emulated_only = true; };
  add(1, 2, 1, 8, {{2, 1}}, true, kInterleaved, none);
  add(1, 64, 2, 16, {{32, 1}, {64, 2}}, true, kInterleaved, none);
  add(2, 64, 3, 8, {{16, 1}, {32, 2}, {64, 4}}, true, kInterleaved, xpos);  // H < r
  add(2, 96, 6, 16, {{32, 2}, {96, 4}}, false, kInterleaved, none);         // r does not divide H
  add(1, 100, 5, 24, {{30, 1}, {45, 5}, {100, 3}}, true, kBlocked, rope);   // short last segments
  emulated_only();
  add(1, 97, 4, 40, {{40, 7}, {97, 12}}, true, kInterleaved, none);  // r does not divide w
  emulated_only();
  add(3, 50, 7, 8, {{25, 2}, {1000, 5}}, true, kInterleaved, none);  // w above N
  emulated_only();
  add(1, 130, 3, 96, {{128, 1}, {130, 3}}, true, kInterleaved, xpos);
  emulated_only();
  add(1, 40, 2, 128, {{20, 1}}, false, kInterleaved, rope);
  add(1, 40, 1, 256, {{40, 1}}, true, kInterleaved, xpos);
  add(1, 600, 1, 8, {{600, 1}}, true, kInterleaved, xpos);  // spans of several tiles
  add(1, 76, 12, 8, {{64, 6}, {76, 12}}, true, kBlocked, none);
  emulated_only();
  add(2, 80, 3, 16, {{8, 1}, {30, 2}, {64, 5}, {1000, 12}}, true, kInterleaved, none, 2);
  emulated_only();
  add(1, 100, 4, 24, {{8, 1}, {30, 2}, {50, 5}, {1000, 3}}, true, kInterleaved, xpos, 3);
  emulated_only();
  add(2, 100, 3, 16, {{24, 1}, {100, 2}}, false, kBlocked, rope, 3);
  add(1, 90, 5, 8, {{90, 1}, {90, 4}}, true, kInterleaved, none, 5);
  emulated_only();
  return list;
}

#define SKIP_WITHOUT_CUDNN() \
  if (!cudnn::unavailable().empty()) GTEST_SKIP() << cudnn::unavailable()

TEST(AttentionSdpaSimt, AgreesWithReference) {
  SKIP_WITHOUT_CUDNN();
  int index = 0;
  double worst_out = 0, worst_gradients = 0;
  for (const Problem& p : problems()) {
    ++index;
    if (p.emulated_only && !simt::emulated()) continue;
    simt::set_order(kOrders[index % 4], uint64_t(index));
    SCOPED_TRACE(p.name());
    Result result;
    try {
      result = run_gpu(p);
    } catch (const Error& error) {
      // Not every GPU's cuDNN has a backward for D above 128.
      const std::string text = error.what();
      if (simt::emulated() || p.head_dim <= 128 || text.find("run.attention=auto") == text.npos)
        throw;
      std::printf("    %s: not taken: %s\n", p.name().c_str(), error.what());
      continue;
    }
    const Ratios r = compare(p, result, run_reference(p));
    EXPECT_LE(r.worst(), 1) << p.name() << ": out " << r.out << ", lse " << r.lse << ", gradients "
                            << r.gradients;
    worst_out = std::max(worst_out, r.out);
    worst_gradients = std::max(worst_gradients, r.gradients);
  }
  simt::set_order(simt::Order::kAscending, 1);
  std::printf("    worst share of the allowance: out %.2f, gradients %.2f\n", worst_out,
              worst_gradients);
}

TEST(AttentionSdpaSimt, AutoLeavesWhatCudnnRefusesToThePlainKernel) {
  SKIP_WITHOUT_CUDNN();
  for (const Position position : {Position::kNone, Position::kXpos})
    for (const int ranks : {1, 2, 3}) {  // single rows at the ends of segments and shards
      if (!simt::emulated() && (position != Position::kNone || ranks > 1)) continue;
      Problem p;
      p.batch = 2;
      p.tokens = 65;
      p.heads = 3;
      p.branches = {{8, 1}, {30, 2}, {64, 5}, {1000, 12}};
      if (!simt::emulated()) p.branches = {{8, 1}, {64, 5}};  // fewer plans
      p.position = position;
      p.ranks = ranks;
      p.seed = 90 + ranks;
      const Ratios r = compare(p, run_gpu(p, AttentionChoice::kAuto), run_reference(p));
      EXPECT_LE(r.worst(), 1) << p.name() << ": out " << r.out << ", lse " << r.lse
                              << ", gradients " << r.gradients;
    }
}

Problem middle() {
  Problem p;
  p.tokens = 300;
  p.heads = 3;
  p.head_dim = 24;
  p.branches = {{110, 1}, {300, 2}};
  p.position = Position::kXpos;
  return p;
}

TEST(AttentionSdpaSimt, SameBitsUnderEveryOrder) {
  SKIP_WITHOUT_CUDNN();
  if (!simt::emulated()) GTEST_SKIP() << "cuDNN's backward adds with atomics";
  const Problem p = middle();
  Result first;
  under_every_order(11, [&](simt::Order order) {
    Result r = run_gpu(p);
    if (order == simt::Order::kAscending) first = r;
    for (Values Result::*v :
         {&Result::out, &Result::lse, &Result::grad_query, &Result::grad_key, &Result::grad_value})
      EXPECT_EQ(std::memcmp((first.*v).data(), (r.*v).data(), 4 * (r.*v).size()), 0)
          << simt::order_name(order);
  });
}

// For compute-sanitizer on a GPU, beside the numbers: the kernels around the library without it.
// Two spans of one tensor, of several tiles and of few rows with gaps, there and back.
TEST(AttentionSdpaSimt, SanitizerPackMergeAndAdd) {
  const int64_t batch = 2, slots = 320, heads = 3, d = 24, rows = 305,
                n = batch * slots * heads * d;
  const std::vector<cuda::RowSpan> spans{{7, 1, 7, 0, 0, 0, 300}, {2, 12, 2, 300, 2, 0, 5}};
  Context context = gpu_context();
  const Values numbers = rounded(random_values(n, 1)),
               lse = random_values(batch * heads * slots, 2);
  const DeviceValues x(DType::kBF16, numbers), out(DType::kF32, numbers), row_lse(DType::kF32, lse),
      sums(DType::kF32, Values(n, 1.0f)), merged(DType::kF32, Values(n)),
      merged_lse(DType::kF32, Values(lse.size(), -INFINITY)),
      packed(DType::kBF16, batch * rows * d), packed_lse(DType::kF32, batch * rows);
  std::vector<cuda::StridedRows> tensors;
  for (const DeviceValues* v : {&x, &out, &sums, &merged})
    tensors.push_back({v->data(), slots * heads * d, heads * d, d, 1});
  const auto words = [](const auto& list) {
    return int64_t((list.size() * sizeof(list[0]) + 7) / 8);
  };
  const DeviceValues on_gpu(DType::kI64, words(tensors)), spans_on_gpu(DType::kI64, words(spans));
  const auto put = [&](const DeviceValues& to, const auto& list) {
    device_runtime::copy_to_device(to.data(), list.data(), int64_t(list.size() * sizeof(list[0])),
                                   context.stream());
  };
  put(on_gpu, tensors);
  put(spans_on_gpu, spans);
  const auto list = [&](int tensor) {
    return cuda::SpanList{static_cast<const cuda::RowSpan*>(spans_on_gpu.data()),
                          static_cast<const cuda::StridedRows*>(on_gpu.data()) + tensor,
                          0,
                          int64_t(spans.size()),
                          300,
                          batch,
                          rows,
                          d};
  };
  const auto lse_rows = [&](const DeviceValues& v) {
    return cuda::LseRows{static_cast<float*>(v.data()), heads * slots, slots, 1};
  };
  cuda::sdpa_pack_results(context, packed.data(), static_cast<float*>(packed_lse.data()), list(1),
                          lse_rows(row_lse));
  cuda::sdpa_merge_rows(context, list(3), lse_rows(merged_lse), packed.data(),
                        static_cast<const float*>(packed_lse.data()));
  const RotaryTable table(d, {Position::kRope, 10000, 64});  // turning back undoes turning
  cuda::sdpa_pack_rows(context, packed.data(), list(0), DType::kBF16, {&table, true, 12});
  cuda::sdpa_add_rows(context, list(2), packed.data(), {&table, true, 12});
  context.wait();
  Values expected(n), expected_lse(lse.size(), -INFINITY), expected_sums(n, 1.0f);
  for (const cuda::RowSpan& span : spans)
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < span.count; ++i) {
        const int64_t slot = span.slot + i * span.step;
        const int64_t row = (b * heads + span.head) * slots + slot;
        expected_lse[row] = lse[row];
        for (int64_t c = 0; c < d; ++c) {
          const int64_t at = ((b * slots + slot) * heads + span.head) * d + c;
          expected[at] = numbers[at];
          expected_sums[at] += numbers[at];
        }
      }
  EXPECT_EQ(merged.floats(), expected);
  EXPECT_EQ(merged_lse.floats(), expected_lse);
  EXPECT_LE(error_ratio(difference(sums.floats(), expected_sums), 0, kTolerance), 1);
}

/// Four rows of one head, D = 8, merged into lse `running` from `branch`.
struct Merged {
  Values out, lse;
};
Merged merge(float running, float branch, float running_out, float branch_out) {
  Context context = gpu_context();
  const DeviceValues out(DType::kF32, Values(32, running_out)),
      lse(DType::kF32, Values(4, running));
  const DeviceValues packed(DType::kBF16, Values(32, branch_out)),
      packed_lse(DType::kF32, Values(4, branch));
  const cuda::StridedRows tensor{out.data(), 32, 8, 8, 0};
  const cuda::RowSpan span{0, 1, 0, 0, 0, 0, 4};
  const DeviceValues tensors(DType::kI64, 8), spans(DType::kI64, 8);
  static_assert(sizeof tensor <= 64 && sizeof span <= 64);
  device_runtime::copy_to_device(tensors.data(), &tensor, sizeof tensor, context.stream());
  device_runtime::copy_to_device(spans.data(), &span, sizeof span, context.stream());
  const cuda::SpanList list{static_cast<const cuda::RowSpan*>(spans.data()),
                            static_cast<const cuda::StridedRows*>(tensors.data()),
                            0,
                            1,
                            4,
                            1,
                            4,
                            8};
  cuda::sdpa_merge_rows(context, list, {static_cast<float*>(lse.data()), 4, 4, 1}, packed.data(),
                        static_cast<const float*>(packed_lse.data()));
  context.wait();
  return {out.floats(), lse.floats()};
}

TEST(AttentionSdpaSimt, MergeByLogSumExp) {
  const float none = -INFINITY;
  Merged m = merge(none, 1.5f, 0, 2);  // the first branch
  EXPECT_EQ(m.out, Values(32, 2.0f));
  EXPECT_EQ(m.lse, Values(4, 1.5f));
  m = merge(1.5f, none, 2, NAN);  // a branch without keys: what stands beside -inf is not read
  EXPECT_EQ(m.out, Values(32, 2.0f));
  EXPECT_EQ(m.lse, Values(4, 1.5f));
  m = merge(none, none, 0, NAN);
  EXPECT_EQ(m.out, Values(32, 0.0f));
  EXPECT_EQ(m.lse, Values(4, none));
  m = merge(0, 0, 1, 3);  // lse 0 is no sign of anything
  for (const float x : m.out) EXPECT_FLOAT_EQ(x, 2);
  for (const float x : m.lse) EXPECT_FLOAT_EQ(x, std::log(2.0f));
  m = merge(-100, -101, 1, 2);
  const double w = 1 / (1 + std::exp(-1.0));
  for (const float x : m.out) EXPECT_NEAR(x, w + 2 * (1 - w), 1e-6);
  for (const float x : m.lse) EXPECT_NEAR(x, -100 + std::log1p(std::exp(-1.0)), 1e-5);
  m = merge(90, -90, 1, 2);  // far apart: no overflow
  EXPECT_EQ(m.out, Values(32, 1.0f));
  for (const float bad : merge(0, NAN, 1, 2).out) EXPECT_TRUE(std::isnan(bad)) << "must not vanish";
  for (const float bad : merge(0, 0, 1, NAN).out) EXPECT_TRUE(std::isnan(bad));
}

/// One forward call of a 32 token branch with f32 or bf16 inputs; what it throws, or "".
std::string outcome(Context& context, DType type, bool documents, int64_t head_dim = 8,
                    bool give_out = true, bool backward = false, int64_t tokens = 32) {
  const int64_t n = tokens * head_dim;
  const DeviceValues x(type, Values(n, 1.0f)), out(DType::kF32, n), lse(DType::kF32, tokens);
  const DeviceValues grad(DType::kF32, Values(n)), limits(std::vector<int64_t>(tokens, 0));
  const auto view = [&](const DeviceValues& v) { return v.view({1, tokens, 1, head_dim}); };
  const SequencePlan plan(tokens, 1, 0, 1, {{tokens, 1}}, HeadOffset::kInterleaved);
  const std::vector<int64_t> offsets = plan.head_offsets(0);
  AttentionOptions options;
  options.head_offset = offsets;
  if (documents) options.first_visible = limits.view({1, tokens});
  const auto tasks = local_segment_tasks(plan, 0, view(x), view(x), view(grad), view(grad));
  const int64_t bytes = attention_workspace_bytes(context, {1, head_dim, type}, tasks, backward);
  const DeviceValues workspace(DType::kF32, bytes / 4);
  try {
    attention_begin(context, view(out), lse.view({1, 1, tokens}));
    if (!backward)
      attention_forward(context, {view(out), lse.view({1, 1, tokens}), view(x), tasks}, options,
                        workspace.data());
    else
      attention_backward(context,
                         {view(grad), view(x), lse.view({1, 1, tokens}), lse.view({1, 1, tokens}),
                          view(x), tasks, give_out ? view(out) : TensorView()},
                         options, workspace.data());
    context.wait();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(AttentionSdpaSimt, RefusesWithTheReason) {
  SKIP_WITHOUT_CUDNN();
  Context context = gpu_context();
  context.set_attention(AttentionChoice::kCudnn);
  const auto has = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
    EXPECT_NE(text.find("set run.attention=auto"), std::string::npos) << text;
  };
  EXPECT_EQ(outcome(context, DType::kBF16, false), "");
  EXPECT_EQ(outcome(context, DType::kBF16, false, 8, true, true), "");
  has(outcome(context, DType::kF32, false), "f32");
  has(outcome(context, DType::kBF16, true), "visibility limits");
  has(outcome(context, DType::kBF16, false, 12), "D 12 is no multiple of 8");
  has(outcome(context, DType::kBF16, false, 8, false, true), "merged out");
  has(outcome(context, DType::kBF16, false, 8, true, true, 1), "");  // cuDNN: one query, one key
  context.set_attention(AttentionChoice::kAuto);
  EXPECT_EQ(outcome(context, DType::kF32, false), "") << "plain takes it";
}

TEST(AttentionSdpaSimt, TheLogSaysOncePerBranchWhichAndWhy) {
  SKIP_WITHOUT_CUDNN();
  const LogText log;
  Context context = gpu_context();
  for (int step = 0; step < 3; ++step) {
    outcome(context, DType::kF32, false);
    outcome(context, DType::kF32, false, 8, true, true);
    outcome(context, DType::kBF16, false);
  }
  context.set_attention(AttentionChoice::kPlain);
  outcome(context, DType::kBF16, false, 8, true, false, 16);
  EXPECT_EQ(
      log.text(),
      "attention of branch (32, 1): plain; cudnn: query, key and value are f32; native: query, "
      "key and value are f32\n"
      "attention of branch (32, 1): cudnn; 1 call of 1 x 1 heads with 32 x 32 rows, query in "
      "place, key in place, value in place\n"
      "attention of branch (16, 1): plain; as run.attention asks\n");
}

TEST(AttentionSdpaSimt, RefusedSegmentsAreLeftToOthers) {
  SKIP_WITHOUT_CUDNN();
  // 16 + 16 + 1 tokens: cuDNN has no backward for one query and one key.
  Context context = gpu_context();
  const SequencePlan plan(33, 1, 0, 1, {{16, 1}}, HeadOffset::kInterleaved);
  const std::vector<int64_t> offsets = plan.head_offsets(0);
  AttentionOptions options;
  options.head_offset = offsets;
  const int64_t n = 33 * 8;
  const DeviceValues x(DType::kBF16, random_values(n, 1)), out(DType::kF32, Values(n, 0.5f)),
      lse(DType::kF32, Values(33, 2.0f)), delta(DType::kF32, 33);
  const auto view = [&](const DeviceValues& v) { return v.view({1, 33, 1, 8}); };
  const auto rows = [&](const DeviceValues& v) { return v.view({1, 1, 33}); };
  for (const bool whole : {true, false}) {
    const DeviceValues grad(DType::kF32, Values(n));
    const auto tasks = local_segment_tasks(plan, 0, view(x), view(x), view(grad), view(grad));
    const DeviceValues workspace(
        DType::kF32, attention_workspace_bytes(context, {1, 8, DType::kBF16}, tasks, true) / 4);
    const sdpa::Outcome outcome = sdpa::try_backward(
        context, {view(grad), view(x), rows(lse), rows(delta), view(x), tasks, view(out)}, options,
        workspace.data(), whole);
    context.wait();
    const Values g = grad.floats();
    const auto touched = [&](int64_t begin, int64_t end) {
      return std::any_of(g.begin() + begin, g.begin() + end, [](float v) { return v != 0; });
    };
    EXPECT_EQ(outcome.refusal.empty(), !whole);
    EXPECT_EQ(outcome.rest.size(), whole ? 0u : 1u);
    EXPECT_EQ(touched(0, 16 * 8), !whole);
    EXPECT_EQ(touched(16 * 8, 32 * 8), !whole);
    EXPECT_FALSE(touched(32 * 8, 33 * 8));
    if (whole) continue;
    EXPECT_EQ(outcome.rest[0].segment, (Segment{32, 33}));
    EXPECT_NE(outcome.description.find("1 of 3 segments"), std::string::npos)
        << outcome.description;
  }
}

TEST(AttentionSdpaSimt, CountingContextGivesTheSameWorkspace) {
  SKIP_WITHOUT_CUDNN();
  Context context = gpu_context();
  Context counting({.device = kGpu, .threads = 1, .counting = true});
  const SequencePlan plan(1000, 1, 0, 6, {{300, 7}}, HeadOffset::kInterleaved);
  const auto tasks = local_segment_tasks(plan, 0, {}, {}, {}, {});
  int64_t before = 0;
  for (const AttentionChoice choice : {AttentionChoice::kPlain, AttentionChoice::kAuto}) {
    context.set_attention(choice);
    counting.set_attention(choice);
    for (const bool backward : {false, true}) {
      const int64_t bytes =
          attention_workspace_bytes(counting, {2, 64, DType::kBF16}, tasks, backward);
      EXPECT_EQ(bytes, attention_workspace_bytes(context, {2, 64, DType::kBF16}, tasks, backward));
      EXPECT_GT(bytes, before) << "cuDNN's operands are part of it";
      before = choice == AttentionChoice::kPlain ? bytes : before;
    }
  }
}

TEST(AttentionSdpaSimt, BenchmarkRunsAndChecksItsResults) {
  SKIP_WITHOUT_CUDNN();
  Context context = gpu_context();
  AttentionBenchOptions options;
  options.tokens = 64;
  options.heads = 2;
  options.head_dim = 16;
  options.branches = {{32, 2}};
  options.repetitions = 2;
  options.limit_gflops = 0;
  for (const AttentionChoice choice : {AttentionChoice::kAuto, AttentionChoice::kPlain})
    for (const DType type : {DType::kBF16, DType::kF32})
      for (const Position position : {Position::kNone, Position::kXpos}) {
        context.set_attention(choice);
        options.dtype = type;
        options.position = position;
        const AttentionBenchResult r = bench_attention(context, options);
        const bool library = choice == AttentionChoice::kAuto && type == DType::kBF16;
        for (const AttentionBenchTiming& t : {r.forward, r.backward}) {
          EXPECT_GT(t.median_seconds, 0);
          EXPECT_GT(t.largest_error, 0);
          EXPECT_EQ(t.sdpa_seconds > 0, library);
          EXPECT_EQ(t.unmerged_seconds > 0, library);
        }
        EXPECT_EQ(r.forward.executed_flops * 2.5, r.backward.executed_flops);
      }
}

TEST(AttentionSdpaSimt, DefectsInNumbersAreFound) {
  SKIP_WITHOUT_CUDNN();
  if (!simt::emulated()) GTEST_SKIP() << "kernels of a GPU build have no defects";
  const Problem p = middle();
  const Result expected = run_reference(p);
  ASSERT_LE(compare(p, run_gpu(p), expected).worst(), 1);
  for (const int bug : {3, 4, 6}) {
    const simt::Defect defect(bug);
    EXPECT_GT(compare(p, run_gpu(p), expected).worst(), 5) << bug;
  }
  const simt::Defect defect(1);  // a branch without keys is merged
  EXPECT_TRUE(std::isnan(merge(-INFINITY, -INFINITY, 0, 0).out[0]));
}

TEST(AttentionSdpaSimt, RacesAreFound) {
  if (!simt::race_checked()) GTEST_SKIP() << "only in the race build";
  const Problem p = middle();
  const std::string found = found_with_defect(2, [&] { run_gpu(p); });
  EXPECT_NE(found.find(" at attention_pack_cuda.cu:"), std::string::npos) << found;
}

TEST(AttentionSdpaSimtDeathTest, RowsPastTheTensorAreFound) {
  if (!simt::address_checked()) GTEST_SKIP() << "only in the ASan build";
  Problem p = middle();
  p.fused = false;
  EXPECT_DEATH(
      {
        const simt::Defect defect(5);
        run_gpu(p);
      },
      "heap-buffer-overflow");
}

}  // namespace
}  // namespace longnet::simt_test
