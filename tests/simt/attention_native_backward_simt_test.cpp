// The native attention's backward (attention_native.h) on a GPU or under the emulator, against the
// double reference, every gradient element within what rounding to bf16 can do to it.
//
// Bounds, with u = 2^-8, the largest relative error of rounding to bf16: rotated q and k are
// rounded, so a score is off by at most E = scale sum_d 2.01 u |q k|; p = exp(s - lse) is off by a
// factor of exp(E) and its own rounding u; ds = p (t - delta) by p's error, by the rounding of
// grad_out if it came in float32, and by u again. These errors are added up by absolute value along
// the sums that make each element, then rotated back. Sums in float32 get 2^-18 of the sum of
// absolute values of their terms.
#include <algorithm>
#include <cmath>

#include "kernels/attention/attention_native.h"
#include "kernels/attention/segment_tasks.h"
#include "simt/device_values.h"
#include "simt/support.h"
#include "support/compare.h"

namespace longnet::simt_test {
namespace {

using test::random_values;
using Values = std::vector<float>;
using Sums = std::vector<double>;

struct Problem {
  int64_t batch = 1, tokens = 64, heads = 2, head_dim = 64;
  std::vector<Branch> branches = {{64, 1}};
  bool causal = true;
  HeadOffset mode = HeadOffset::kInterleaved;
  Position position = Position::kNone;
  DType grad_out = DType::kBF16;  // type of the incoming gradient
  int ranks = 1;
  uint64_t seed = 1;

  int64_t elements() const { return batch * tokens * heads * head_dim; }
  RotaryTable table() const { return RotaryTable(head_dim, {position, 10000, 256}); }
  std::string name() const {
    std::string text = fmt::format("B{} N{} H{} D{} {} position {} ranks {}", batch, tokens, heads,
                                   head_dim, causal ? "causal" : "full", int(position), ranks);
    for (const Branch& b : branches) text += fmt::format(" ({}, {})", b.segment_length, b.dilation);
    return text;
  }
  TensorView view(Values& v) const {
    return TensorView(v.data(), DType::kF32, {batch, tokens, heads, head_dim});
  }
  TensorView rows(Values& v) const {
    return TensorView(v.data(), DType::kF32, {batch, heads, tokens});
  }
  AttentionOptions options(int branch, const std::vector<int64_t>& offsets,
                           const RotaryTable& table) const {
    AttentionOptions o;
    o.dilation = branches[branch].dilation;
    o.segment_length = branches[branch].segment_length;
    o.head_offset = offsets;
    o.rotary = &table;
    o.scale = static_cast<float>(1.0 / std::sqrt(double(head_dim)));
    o.causal = causal;
    return o;
  }
};

Values rounded(Values values) {
  for (float& v : values) v = to_float(to_bf16(v));
  return values;
}

struct Gradients {
  Values query, key, value;
};
struct Bounds {
  Sums query, key, value;
};

/// A problem with its inputs, the merged state of the forward, and what the backward should give.
struct Case {
  Problem p;
  Values query, key, value, grad_out, lse, delta;
  Gradients expected;
  Bounds bounds;

  explicit Case(const Problem& problem) : p(problem) {
    const int64_t n = p.elements();
    query = rounded(random_values(n, p.seed));
    key = rounded(random_values(n, p.seed + 1000));
    value = rounded(random_values(n, p.seed + 2000));
    grad_out = random_values(n, p.seed + 3000);
    if (p.grad_out == DType::kBF16) grad_out = rounded(grad_out);
    lse.assign(p.batch * p.heads * p.tokens, -INFINITY);
    delta.resize(lse.size());
    Values out(n);
    expected = {Values(n), Values(n), Values(n)};
    bounds = {Sums(n), Sums(n), Sums(n)};
    const SequencePlan plan(p.tokens, 1, 0, p.heads, p.branches, p.mode);
    const RotaryTable table = p.table();
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1) reference::attention_delta(p.rows(delta), p.view(grad_out), p.view(out));
      for (int k = 0; k < int(p.branches.size()); ++k) {
        const std::vector<int64_t> offsets = plan.head_offsets(k);
        const AttentionOptions options = p.options(k, offsets, table);
        const auto tasks = local_segment_tasks(plan, k, p.view(key), p.view(value),
                                               p.view(expected.key), p.view(expected.value));
        if (pass == 0) {
          reference::attention_forward({p.view(out), p.rows(lse), p.view(query), tasks}, options);
          continue;
        }
        reference::attention_backward({p.view(expected.query), p.view(grad_out), p.rows(lse),
                                       p.rows(delta), p.view(query), tasks},
                                      options);
        for (const SegmentTask& task : tasks)
          for (int64_t b = 0; b < p.batch; ++b)
            for (int64_t h = 0; h < p.heads; ++h) add_bounds(task, options, table, b, h);
      }
    }
  }

 private:
  using Turns = std::vector<float>;  // cosines and sines of one row

  int64_t index(int64_t b, int64_t t, int64_t h) const {
    return ((b * p.tokens + t) * p.heads + h) * p.head_dim;
  }
  Turns turns(const RotaryTable& table, int64_t position, bool is_key) const {
    Turns t(p.head_dim, 1.0f);
    std::fill(t.begin() + p.head_dim / 2, t.end(), 0.0f);
    if (p.position == Position::kNone) return t;
    RotaryTable::Cursor cursor;
    table.factors(position, is_key, cursor, t.data(), t.data() + p.head_dim / 2);
    return t;
  }
  Sums turned(const float* row, const Turns& t) const {
    Sums y(p.head_dim);
    for (int64_t i = 0; i < p.head_dim / 2; ++i) {
      const double c = t[i], s = t[p.head_dim / 2 + i];
      y[2 * i] = row[2 * i] * c - row[2 * i + 1] * s;
      y[2 * i + 1] = row[2 * i + 1] * c + row[2 * i] * s;
    }
    return y;
  }
  /// Bounds of a row before rotating back give those after it.
  void add_turned(Sums& to, int64_t at, const Sums& bound, const Turns& t) const {
    for (int64_t i = 0; i < p.head_dim / 2; ++i) {
      const double c = std::abs(t[i]), s = std::abs(t[p.head_dim / 2 + i]);
      to[at + 2 * i] += c * bound[2 * i] + s * bound[2 * i + 1];
      to[at + 2 * i + 1] += c * bound[2 * i + 1] + s * bound[2 * i];
    }
  }

  void add_bounds(const SegmentTask& task, const AttentionOptions& options,
                  const RotaryTable& table, int64_t b, int64_t h) {
    constexpr double u = 1.0 / 256, sums = 1.0 / (1 << 18);
    const double turn = p.position == Position::kNone ? 0 : u;
    const double widened = p.grad_out == DType::kBF16 ? 0 : u;
    const HeadRows &queries = task.queries, &keys = task.keys[0].rows;
    const int64_t d_count = p.head_dim;
    const auto position = [&](int64_t row) {
      return task.segment.begin + options.head_offset[h] + row * options.dilation - task.origin;
    };
    struct Row {
      int64_t at, number;
      Turns turns;
      Sums x, bound, value_bound;
    };
    const auto rows_of = [&](const HeadRows& rows, const Values& x, bool is_key) {
      std::vector<Row> list;
      for (int64_t i = 0; i < rows.count[h]; ++i) {
        Row r;
        r.at = index(b, rows.slot[h] + i * rows.step, h);
        r.number = rows.first[h] + i;
        r.turns = turns(table, position(r.number), is_key);
        r.x = turned(x.data() + r.at, r.turns);
        r.bound.assign(d_count, 0);
        r.value_bound.assign(d_count, 0);
        list.push_back(std::move(r));
      }
      return list;
    };
    std::vector<Row> q = rows_of(queries, query, false), k = rows_of(keys, key, true);
    for (int64_t i = 0; i < int64_t(q.size()); ++i) {
      const int64_t slot = queries.slot[h] + i * queries.step;
      const double row_lse = lse[(b * p.heads + h) * p.tokens + slot],
                   row_delta = delta[(b * p.heads + h) * p.tokens + slot];
      for (Row& key_row : k) {
        if (options.causal && key_row.number > q[i].number) continue;
        double s = 0, s_size = 0, t = 0, t_size = 0;
        for (int64_t d = 0; d < d_count; ++d) {
          const double product = q[i].x[d] * key_row.x[d],
                       other = double(grad_out[q[i].at + d]) * value[key_row.at + d];
          s += product;
          s_size += std::abs(product);
          t += other;
          t_size += std::abs(other);
        }
        const double weight = std::exp(options.scale * s - row_lse);
        const double score_error =
            options.scale * s_size * (2.01 * turn + sums) + (std::abs(row_lse) + 1) * 1e-6;
        const double weight_error = weight * (std::expm1(score_error) * (1 + u) + u);
        const double less = std::abs(t - row_delta),
                     less_error = widened * t_size + sums * (t_size + std::abs(row_delta));
        const double ds = weight * less;
        double ds_error = weight_error * (less + less_error) + weight * less_error;
        ds_error += u * (ds + ds_error);
        for (int64_t d = 0; d < d_count; ++d) {
          const double x = std::abs(q[i].x[d]), y = std::abs(key_row.x[d]),
                       g = std::abs(double(grad_out[q[i].at + d]));
          q[i].bound[d] += options.scale * (ds_error * (1 + turn) + ds * (turn + sums)) * y;
          key_row.bound[d] += options.scale * (ds_error * (1 + turn) + ds * (turn + sums)) * x;
          key_row.value_bound[d] += (weight_error * (1 + widened) + weight * (widened + sums)) * g;
        }
      }
    }
    for (const Row& r : q) add_turned(bounds.query, r.at, r.bound, r.turns);
    for (const Row& r : k) {
      add_turned(bounds.key, r.at, r.bound, r.turns);
      for (int64_t d = 0; d < d_count; ++d) bounds.value[r.at + d] += r.value_bound[d];
    }
  }
};

/// All ranks of the problem, one after the other on one GPU; gathered chunks are packed by the
/// CPU's kernels and their gradients taken home by them: what the sequence exchange does.
Gradients run(Case& c) {
  Problem& p = c.p;
  Context context = gpu_context(), host({.device = {}, .threads = 1, .counting = false});
  const int64_t n = p.elements(), row = p.heads * p.head_dim;
  const RotaryTable table = p.table();
  // q, k, v are thirds of one tensor [B, N, 3, H, D], and so are their gradients.
  Values interleaved(3 * n);
  for (int64_t t = 0; t < p.batch * p.tokens; ++t)
    for (int64_t i = 0; i < row; ++i) {
      interleaved[(3 * t) * row + i] = c.query[t * row + i];
      interleaved[(3 * t + 1) * row + i] = c.key[t * row + i];
      interleaved[(3 * t + 2) * row + i] = c.value[t * row + i];
    }
  const DeviceValues inputs(DType::kBF16, interleaved), grad_out(p.grad_out, c.grad_out),
      lse(DType::kF32, c.lse), delta(DType::kF32, c.delta), grads(DType::kF32, Values(3 * n));
  const auto third = [&](const DeviceValues& x, DType type, int part) {
    TensorView v(static_cast<char*>(x.data()) + dtype_size(type) * part * row, type,
                 {p.batch, p.tokens, p.heads, p.head_dim}, kGpu);
    v.stride = {3 * p.tokens * row, 3 * row, p.head_dim, 1};
    return v;
  };
  std::vector<SequencePlan> plans;
  for (int rank = 0; rank < p.ranks; ++rank)
    plans.emplace_back(p.tokens, p.ranks, rank, p.heads, p.branches, p.mode);
  Values home_key(n), home_value(n);
  std::vector<bf16> host_key(n), host_value(n);
  for (int64_t i = 0; i < n; ++i) {
    host_key[i] = to_bf16(c.key[i]);
    host_value[i] = to_bf16(c.value[i]);
  }
  const auto host_view = [&](auto& values, DType type) {
    return TensorView(values.data(), type, {p.batch, p.tokens, p.heads, p.head_dim});
  };
  for (int k = 0; k < int(p.branches.size()); ++k)
    for (const SequencePlan& plan : plans) {
      if (plan.local_tokens() == 0) continue;
      const std::vector<int64_t> offsets = plan.head_offsets(k);
      const AttentionOptions options = p.options(k, offsets, table);
      const auto part = [&](const TensorView& x) {
        return x.slice(1, plan.local_begin(), plan.local_tokens());
      };
      const auto row_part = [&](const DeviceValues& v) {
        return v.view({p.batch, p.heads, p.tokens})
            .slice(2, plan.local_begin(), plan.local_tokens());
      };
      const auto attend = [&](std::span<const SegmentTask> tasks) {
        const AttentionBackward call{part(third(grads, DType::kF32, 0)),
                                     part(grad_out.view({p.batch, p.tokens, p.heads, p.head_dim})),
                                     row_part(lse),
                                     row_part(delta),
                                     part(third(inputs, DType::kBF16, 0)),
                                     tasks};
        EXPECT_EQ(cuda::native_refusal(context, call, options), "");
        const DeviceValues workspace(
            DType::kF32,
            cuda::native_backward_bytes({p.batch, p.head_dim, DType::kBF16}, tasks) / 4);
        cuda::native_backward(context, call, options, workspace.data());
        context.wait();
      };
      attend(local_segment_tasks(
          plan, k, part(third(inputs, DType::kBF16, 1)), part(third(inputs, DType::kBF16, 2)),
          part(third(grads, DType::kF32, 1)), part(third(grads, DType::kF32, 2))));
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
        /// Calls f(member, its plan, its share of a host tensor).
        const auto for_members = [&](auto f) {
          for (int rank = gathered.first_rank; rank <= gathered.last_rank; ++rank) {
            const int member = rank - gathered.first_rank;
            const SequencePlan& owner = plans[rank];
            if (layout.chunk_rows(member) == 0) continue;
            f(member, owner, [&](const TensorView& x) {
              return x.slice(1, owner.local_begin(), owner.local_tokens());
            });
          }
        };
        for_members([&](int member, const SequencePlan& owner, auto owners) {
          SegmentTask owned;
          owned.segment = gathered.segment;
          owned.origin = segment_origin(owner, k, gathered.segment);
          attention_pack_rows(host, chunk(buffer, member, 0), chunk(buffer, member, 1),
                              owners(host_view(host_key, DType::kBF16)),
                              owners(host_view(host_value, DType::kBF16)),
                              local_rows(owner, k, gathered.segment), layout.row_slot(member),
                              owned, options);
        });
        Values as_floats;
        for (const bf16 x : chunks) as_floats.push_back(to_float(x));
        const DeviceValues on_gpu(DType::kBF16, as_floats),
            chunk_grads(DType::kF32, Values(layout.elements()));
        const SegmentTask task =
            gathered_segment_task(plan, k, gathered, layout, on_gpu.flat(), chunk_grads.flat());
        attend({&task, 1});
        Values home = chunk_grads.floats();
        const TensorView host_grads(home.data(), DType::kF32, {layout.elements()});
        for_members([&](int member, const SequencePlan& owner, auto owners) {
          attention_unpack_rows_add(host, owners(host_view(home_key, DType::kF32)),
                                    owners(host_view(home_value, DType::kF32)),
                                    chunk(host_grads, member, 0), chunk(host_grads, member, 1),
                                    local_rows(owner, k, gathered.segment), layout.row_slot(member),
                                    task, options);
        });
      }
    }
  const Values all = grads.floats();
  Gradients g{Values(n), home_key, home_value};
  for (int64_t t = 0; t < p.batch * p.tokens; ++t)
    for (int64_t i = 0; i < row; ++i) {
      g.query[t * row + i] += all[(3 * t) * row + i];
      g.key[t * row + i] += all[(3 * t + 1) * row + i];
      g.value[t * row + i] += all[(3 * t + 2) * row + i];
    }
  return g;
}

/// Largest error of any element as a share of its bound; NaN counts as infinite.
double ratio(const Values& actual, const Values& expected, const Sums& bound) {
  double worst = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(double(actual[i]) - expected[i]);
    if (error == 0) continue;
    worst = std::max(worst, error <= INFINITY && bound[i] > 0 ? error / bound[i] : INFINITY);
  }
  return worst;
}
double ratio(const Case& c, const Gradients& g) {
  return std::max({ratio(g.query, c.expected.query, c.bounds.query),
                   ratio(g.key, c.expected.key, c.bounds.key),
                   ratio(g.value, c.expected.value, c.bounds.value)});
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
    p.grad_out = list.size() % 3 == 2 ? DType::kF32 : DType::kBF16;
    list.push_back(p);
  };
  add(1, 1, 1, 64, {{1, 1}}, true, kInterleaved, none);
  add(1, 300, 1, 64, {{300, 1}}, true, kInterleaved, none);
  add(1, 300, 2, 128, {{270, 1}, {300, 2}}, true, kInterleaved, xpos);
  add(1, 280, 1, 80, {{280, 1}}, false, kInterleaved, rope);
  add(1, 270, 2, 96, {{64, 1}, {270, 2}}, true, kBlocked, none);
  add(2, 97, 3, 64, {{40, 7}, {97, 2}}, true, kInterleaved, rope);  // r does not divide w
  add(1, 129, 2, 128, {{129, 1}, {50, 3}}, false, kInterleaved, none);
  add(1, 193, 3, 80, {{65, 1}, {1000, 5}}, true, kInterleaved, xpos);  // w above N, H < r
  add(1, 64, 4, 96, {{64, 1}}, false, kInterleaved, rope);
  add(2, 100, 3, 64, {{24, 1}, {70, 3}, {1000, 2}}, true, kInterleaved, xpos, 3);
  add(1, 150, 2, 128, {{150, 1}, {150, 2}}, false, kBlocked, none, 2);
  return list;
}

TEST(AttentionNativeBackwardSimt, AgreesWithReference) {
  int index = 0;
  double worst = 0;
  for (const Problem& p : problems()) {
    ++index;
    simt::set_order(kOrders[index % 4], uint64_t(index));
    Case c(p);
    const double r = ratio(c, run(c));
    EXPECT_LE(r, 1) << p.name();
    worst = std::max(worst, r);
  }
  simt::set_order(simt::Order::kAscending, 1);
  EXPECT_GT(worst, 0.05) << "bounds that nothing comes near find nothing";
  RecordProperty("largest_ratio", fmt::format("{:.3f}", worst));
}

/// Three tiles of keys and five of queries with tails, two segments, dilation, two offsets.
Problem middle() {
  Problem p;
  p.tokens = 290;
  p.heads = 2;
  p.branches = {{280, 1}, {145, 2}};
  return p;
}

// For compute-sanitizer on a GPU, beside the numbers: few tiles, every kind of load and store.
TEST(AttentionNativeBackwardSimt, SanitizerCases) {
  for (const int64_t head_dim : {64, 128})
    for (const Position position : {Position::kNone, Position::kXpos})
      for (const int ranks : {1, 2}) {  // 2: gathered keys, too
        Problem p = middle();
        p.head_dim = head_dim;
        p.position = position;
        p.ranks = ranks;
        p.causal = ranks == 1 || position == Position::kXpos;
        p.grad_out = ranks == 1 ? DType::kBF16 : DType::kF32;
        Case c(p);
        EXPECT_LE(ratio(c, run(c)), 1) << p.name();
      }
}

TEST(AttentionNativeBackwardSimt, EveryOrder) {
  Problem p = middle();
  p.position = Position::kXpos;
  Case c(p);
  under_every_order(
      5, [&](simt::Order order) { EXPECT_LE(ratio(c, run(c)), 1) << simt::order_name(order); });
}

TEST(AttentionNativeBackwardSimt, SameWithoutStmatrix) {
  Case c(middle());
  const Gradients g = run(c);
  const simt::Defect none(simt::kNoStoreMatrix);
  const Gradients h = run(c);
  EXPECT_EQ(g.key, h.key);
  EXPECT_EQ(g.value, h.value);
  EXPECT_LE(ratio(c, h), 1);
}

TEST(AttentionNativeBackwardSimt, RowsWithoutKeysAndFarLogSums) {
  Problem p;
  p.tokens = 70;
  p.heads = 1;
  p.branches = {{70, 1}};
  Case c(p);
  // A row that no key of any branch reaches gives and gets nothing.
  Case bare = c;
  bare.lse[69] = -INFINITY;
  const Gradients g = run(bare);
  for (int64_t d = 0; d < p.head_dim; ++d) EXPECT_EQ(g.query[69 * p.head_dim + d], 0);
  EXPECT_EQ(ratio(g.query, g.query, c.bounds.query), 0) << "NaN";
  EXPECT_EQ(ratio(g.key, g.key, c.bounds.key), 0) << "NaN";
  // Hidden pairs and rows past the end: exp(s - lse) would be infinite there.
  for (float& x : c.query) x = -8;
  for (float& x : c.key) x = 8;
  Case far(c);
  for (float& x : far.lse) x = -512 + std::log(35.0f);
  const Gradients h = run(far);
  for (const Values* v : {&h.query, &h.key, &h.value})
    for (const float x : *v) ASSERT_TRUE(std::isfinite(x));
}

TEST(AttentionNativeBackwardSimt, NaNComesThrough) {
  Problem p;
  p.tokens = 70;
  p.heads = 1;
  p.branches = {{70, 1}};
  Case c(p);
  c.value[0] = NAN;
  EXPECT_TRUE(std::isnan(run(c).query[69 * p.head_dim]));
}

TEST(AttentionNativeBackwardSimt, DefectsInNumbersAreFound) {
  Case c(middle());
  ASSERT_LE(ratio(c, run(c)), 1);
  // 73: fragments swapped, 74: mask off by one, 75: without delta, 77: wait too weak.
  for (const int bug : {73, 74, 75, 77}) {
    const simt::Defect defect(bug);
    try {
      EXPECT_GT(ratio(c, run(c)), 5) << bug;
    } catch (const std::exception& found) {  // copies that nobody waited for are a race, too
      EXPECT_TRUE(simt::race_checked() && bug == 77) << bug << found.what();
    }
  }
}

TEST(AttentionNativeBackwardSimt, RacesAreFound) {
  if (!simt::race_checked()) GTEST_SKIP() << "only in the race build";
  Case c(middle());
  // 71, 72: a barrier is missing; 76: grad_query added to without atomics.
  for (const int bug : {71, 72, 76}) {
    const std::string found = found_with_defect(bug, [&] { run(c); });
    EXPECT_NE(found.find("race: "), std::string::npos) << bug;
    // Tiles are written and read in the file that the forward has, too.
    EXPECT_NE(found.find(bug == 76 ? "attention_native_backward_cuda.cu:" : "native_tile.h:"),
              std::string::npos)
        << bug << found;
  }
}

TEST(AttentionNativeBackwardSimtDeathTest, RowsPastTheTensorAreFound) {
  if (!simt::address_checked()) GTEST_SKIP() << "only in the ASan build";
  Case c(middle());
  EXPECT_DEATH(
      {
        const simt::Defect defect(78);
        run(c);
      },
      "heap-buffer-overflow");
}

}  // namespace
}  // namespace longnet::simt_test
