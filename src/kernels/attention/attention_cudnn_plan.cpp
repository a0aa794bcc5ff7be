// See attention_cudnn_plan.h.
#include "kernels/attention/attention_cudnn_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>

namespace longnet::sdpa {
namespace {

// Elements of an operand: 64 MiB of bf16, some thirty rounds of 128-row tiles on an H100. More in
// one problem costs memory and gains nothing.
constexpr int64_t kMaxElements = int64_t{1} << 25;
constexpr int64_t kMaxEntries = 32768;  // batch x heads: a launch's third dimension ends at 65535

struct Counts {
  int64_t pass = 0;  // units of one pass share no query row
  int64_t query_rows = 0, key_rows = 0;
  bool causal = false;
  auto operator<=>(const Counts&) const = default;
};

/// Key rows that follow one another without a gap: [begin, end) in the segment's numbers.
struct Run {
  int64_t begin = 0, end = 0;
  std::vector<KeyPiece> pieces;
};

std::vector<Run> key_runs(const SegmentTask& task, int64_t head) {
  std::vector<Run> runs;
  for (size_t s = 0; s < task.keys.size(); ++s) {
    const HeadRows& rows = task.keys[s].rows;
    if (rows.count[head] == 0) continue;
    if (runs.empty() || runs.back().end != rows.first[head])
      runs.push_back({rows.first[head], rows.first[head], {}});
    runs.back().pieces.push_back({static_cast<int64_t>(s), 0, rows.count[head]});
    runs.back().end += rows.count[head];
  }
  return runs;
}

/// Rows [begin, end) of a run.
std::vector<KeyPiece> slice(const Run& run, int64_t begin, int64_t end) {
  std::vector<KeyPiece> pieces;
  int64_t row = run.begin;
  for (const KeyPiece& piece : run.pieces) {
    const int64_t from = std::max(begin, row), to = std::min(end, row + piece.count);
    if (from < to) pieces.push_back({piece.source, from - row, to - from});
    row += piece.count;
  }
  return pieces;
}

/// What a unit's addresses depend on besides its segment: equal differences form a stride.
struct Place {
  int64_t head = 0, query = 0, key = 0;  // slots on axis 1
  bool operator==(const Place&) const = default;
  Place operator-(const Place& o) const { return {head - o.head, query - o.query, key - o.key}; }
  auto order() const { return std::tuple(head, query, key); }
};

Place place_of(const Unit& unit, std::span<const SegmentTask> segments) {
  const SegmentTask& task = segments[unit.task];
  const KeyPiece& piece = unit.keys.front();
  const HeadRows& keys = task.keys[piece.source].rows;
  return {unit.head, task.queries.slot[unit.head] + unit.query_begin * task.queries.step,
          keys.slot[unit.head] + piece.begin * keys.step};
}

/// Splits the units of one segment into runs of equal place differences, the longest ones first.
std::vector<std::vector<Unit>> regular_runs(const std::vector<Unit>& units,
                                            std::span<const SegmentTask> segments) {
  constexpr size_t kCandidates = 64;  // second members tried: dilations above leave few heads each
  std::vector<Place> places;
  for (const Unit& unit : units) places.push_back(place_of(unit, segments));
  std::vector<size_t> left(units.size());
  for (size_t i = 0; i < left.size(); ++i) left[i] = i;
  std::vector<std::vector<Unit>> runs;
  while (!left.empty()) {
    std::vector<size_t> best{left[0]};
    for (size_t j = 1; j < std::min(left.size(), kCandidates) && best.size() < left.size(); ++j) {
      const Place step = places[left[j]] - places[left[0]];
      std::vector<size_t> run{left[0], left[j]};
      for (size_t k = j + 1; k < left.size(); ++k)
        if (places[left[k]] - places[run.back()] == step) run.push_back(left[k]);
      if (run.size() > best.size()) best = std::move(run);
    }
    std::vector<Unit> run;
    for (size_t i : best) {
      run.push_back(units[i]);
      left.erase(std::find(left.begin(), left.end(), i));
    }
    runs.push_back(std::move(run));
  }
  return runs;
}

/// Units that one group may have.
int64_t most_units(const Counts& counts, const GroupOptions& options) {
  const int64_t elements =
      options.batch * std::max(counts.query_rows, counts.key_rows) * options.head_dim;
  return std::clamp<int64_t>(kMaxElements / std::max<int64_t>(1, elements), 1,
                             std::max<int64_t>(1, kMaxEntries / options.batch));
}

/// Appends groups with these units, [tasks][heads]; heads that are too many for one group are units
/// one by one.
void append(std::vector<Group>& groups, const Counts& counts, int64_t heads,
            const std::vector<Unit>& units, const GroupOptions& options) {
  const int64_t most = most_units(counts, options);
  if (heads > most) heads = 1;
  const int64_t step = most / heads * heads, count = static_cast<int64_t>(units.size());
  for (int64_t begin = 0; begin < count; begin += step)
    groups.push_back(
        {counts.query_rows, counts.key_rows, counts.causal, heads,
         std::vector<Unit>(units.begin() + begin, units.begin() + std::min(count, begin + step))});
}

bool same_heads(const std::vector<Unit>& a, const std::vector<Unit>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Unit& x, const Unit& y) { return x.head == y.head; });
}

/// Strides of a list of addresses [outer][heads], in elements of 2 bytes; rows: of a unit. An axis
/// of one entry gets the stride that it has in a plain [batch, row, head, D] tensor.
std::optional<InPlace> regular(const std::vector<int64_t>& bytes, int64_t heads, int64_t row,
                               int64_t rows, int64_t head_dim) {
  const int64_t outer = static_cast<int64_t>(bytes.size()) / heads;
  InPlace found;
  found.data = reinterpret_cast<const void*>(bytes[0]);
  const int64_t head = heads > 1 ? bytes[1] - bytes[0] : 2 * head_dim;
  const int64_t batch = outer > 1 ? bytes[heads] - bytes[0] : 2 * row * rows;
  for (int64_t n = 0; n < outer; ++n)
    for (int64_t h = 0; h < heads; ++h)
      if (bytes[n * heads + h] != bytes[0] + n * batch + h * head) return std::nullopt;
  if (head <= 0 || batch <= 0 || row <= 0 || (bytes[0] | head | batch | 2 * row) % 16 != 0)
    return std::nullopt;
  found.strides = {batch / 2, head / 2, row};
  return found;
}

/// Address of a slot's row of a head, in bytes.
int64_t address(const TensorView& x, int64_t sequence, int64_t slot, int64_t head) {
  return reinterpret_cast<int64_t>(x.data) +
         dtype_size(x.dtype) * (sequence * x.stride[0] + slot * x.stride[1] + head * x.stride[2]);
}

/// Floats per query row and (batch, head), rows padded to 64.
int64_t query_sum_bytes(const Shape& s, int64_t floats) {
  return s.batch * s.heads * ((s.query_rows + 63) / 64 * 64) * floats * 4;
}

/// Per counts, a list of units of every segment that has some.
using UnitLists = std::map<Counts, std::vector<std::vector<Unit>>>;

UnitLists units_of(std::span<const SegmentTask> segments, bool causal) {
  UnitLists found;
  for (size_t t = 0; t < segments.size(); ++t) {
    const SegmentTask& task = segments[t];
    std::map<Counts, std::vector<Unit>> mine;
    for (int64_t h = 0; h < static_cast<int64_t>(task.queries.count.size()); ++h) {
      const int64_t query_begin = task.queries.first[h];
      const int64_t query_end = query_begin + task.queries.count[h];
      if (query_begin == query_end) continue;
      const auto add = [&](int64_t pass, bool causal, int64_t first_query, const Run& run,
                           int64_t key_begin, int64_t key_end) {
        if (first_query >= query_end || key_begin >= key_end) return;
        mine[{pass, query_end - first_query, key_end - key_begin, causal}].push_back(
            {static_cast<int64_t>(t), h, first_query - query_begin,
             slice(run, key_begin, key_end)});
      };
      const std::vector<Run> runs = key_runs(task, h);
      for (size_t r = 0; r < runs.size(); ++r) {
        const Run& run = runs[r];
        const int64_t pass = 2 * static_cast<int64_t>(r);
        if (!causal) {
          add(pass, false, query_begin, run, run.begin, run.end);
          continue;
        }
        // Keys before the first query are seen by all; from there on the diagonal begins.
        const int64_t diagonal = std::max(run.begin, query_begin);
        add(pass, false, query_begin, run, run.begin, std::min(run.end, query_begin));
        add(pass + 1, true, diagonal, run, diagonal, std::min(run.end, query_end));
      }
    }
    for (auto& [counts, units] : mine) found[counts].push_back(std::move(units));
  }
  return found;
}

}  // namespace

std::vector<Group> make_groups(std::span<const SegmentTask> segments, const GroupOptions& options) {
  const UnitLists found = units_of(segments, options.causal);
  std::vector<Group> groups;
  for (const auto& [counts, lists] : found) {
    const bool one_piece = std::all_of(lists.begin(), lists.end(), [](const auto& units) {
      return std::all_of(units.begin(), units.end(),
                         [](const Unit& unit) { return unit.keys.size() == 1; });
    });
    if (options.in_place && one_piece) {
      // Segments with the same sequence of runs form a grid.
      using Signature = std::tuple<int64_t, std::tuple<int64_t, int64_t, int64_t>, size_t>;
      std::map<Signature, std::vector<Unit>> grids;
      for (const std::vector<Unit>& units : lists)
        for (const std::vector<Unit>& run : regular_runs(units, segments)) {
          const Place first = place_of(run.front(), segments);
          const Place step = run.size() > 1 ? place_of(run[1], segments) - first : Place{};
          std::vector<Unit>& grid = grids[{first.head, step.order(), run.size()}];
          grid.insert(grid.end(), run.begin(), run.end());
        }
      for (const auto& [signature, units] : grids)
        append(groups, counts, static_cast<int64_t>(std::get<2>(signature)), units, options);
      continue;
    }
    const bool grid = std::all_of(lists.begin(), lists.end(), [&](const auto& units) {
      return same_heads(units, lists.front());
    });
    std::vector<Unit> all;
    for (const std::vector<Unit>& units : lists) all.insert(all.end(), units.begin(), units.end());
    append(groups, counts, grid ? static_cast<int64_t>(lists.front().size()) : 1, all, options);
  }
  return groups;
}

std::vector<GroupBound> largest_groups(std::span<const SegmentTask> segments,
                                       const GroupOptions& options) {
  std::vector<GroupBound> bounds;
  for (const auto& [counts, lists] : units_of(segments, options.causal)) {
    int64_t units = 0, pieces = 0;
    for (const std::vector<Unit>& list : lists)
      for (const Unit& unit : list) {
        ++units;
        pieces += static_cast<int64_t>(unit.keys.size());
      }
    bounds.push_back({counts.query_rows, counts.key_rows, units, pieces,
                      std::min(units, most_units(counts, options))});
  }
  return bounds;
}

std::optional<InPlace> queries_in_place(const Group& group, std::span<const SegmentTask> segments,
                                        const TensorView& tensor) {
  if (tensor.dtype != DType::kBF16) return std::nullopt;
  const int64_t step = segments[group.units[0].task].queries.step;
  std::vector<int64_t> bytes;
  for (int64_t b = 0; b < tensor.shape[0]; ++b)
    for (const Unit& unit : group.units) {
      const HeadRows& rows = segments[unit.task].queries;
      if (rows.step != step) return std::nullopt;
      bytes.push_back(
          address(tensor, b, rows.slot[unit.head] + unit.query_begin * step, unit.head));
    }
  return regular(bytes, group.heads, step * tensor.stride[1], group.query_rows, tensor.shape[3]);
}

std::optional<InPlace> keys_in_place(const Group& group, std::span<const SegmentTask> segments,
                                     TensorView KeySource::*member) {
  const auto source_of = [&](const Unit& unit) -> const KeySource& {
    return segments[unit.task].keys[unit.keys[0].source];
  };
  const KeySource& first = source_of(group.units[0]);
  const int64_t row = first.rows.step * (first.*member).stride[1];
  std::vector<int64_t> bytes;
  for (int64_t b = 0; b < (first.*member).shape[0]; ++b)
    for (const Unit& unit : group.units) {
      if (unit.keys.size() != 1) return std::nullopt;
      const KeySource& source = source_of(unit);
      const TensorView& tensor = source.*member;
      if (tensor.dtype != DType::kBF16 || source.rows.step * tensor.stride[1] != row)
        return std::nullopt;
      bytes.push_back(address(tensor, b,
                              source.rows.slot[unit.head] + unit.keys[0].begin * source.rows.step,
                              unit.head));
    }
  return regular(bytes, group.heads, row, group.key_rows, (first.*member).shape[3]);
}

Shape packed_shape(const Group& group, int64_t batch, int64_t head_dim, float scale) {
  Shape s;
  s.batch = batch * group.tasks();
  s.heads = group.heads;
  s.query_rows = group.query_rows;
  s.key_rows = group.key_rows;
  s.head_dim = head_dim;
  s.causal = group.causal;
  s.scale = scale;
  s.query = packed_strides(s.heads, s.query_rows, head_dim);
  s.key = s.value = packed_strides(s.heads, s.key_rows, head_dim);
  return s;
}

std::string known_defect(const Shape& s) {
  if (!s.backward) return "";
  // NaN in grad_key and grad_value where lse is far below zero (cudnn-frontend issue 1072).
  if (s.query_rows == 1) return "the backward of a single query, where cuDNN may give NaN";
  // The kernel for 9.0 takes 128 keys at a time, but masks what is past the last one only where the
  // keys do not fill blocks of 64. Past 64 (mod 128) of them it reads zeros, whose weight
  // exp(0 - lse) is infinite for lse below -88.7: NaN in grad_query (cudnn-frontend pull request
  // 628, PyTorch issue 196678; seen at 64, 192 and 1216 keys, not at 1000 and 1280). The causal
  // mask hides them, unless there are queries below the diagonal's end.
  if (s.key_rows % 128 == 64 && (!s.causal || s.query_rows > s.key_rows))
    return fmt::format(
        "the backward of {} keys (64 above a multiple of 128), where cuDNN may give NaN",
        s.key_rows);
  return "";
}

int64_t algorithm_workspace_bytes(const Shape& s) {
  if (!s.backward) return int64_t{16} << 20;
  return (int64_t{32} << 20) + query_sum_bytes(s, s.head_dim);
}

int64_t library_workspace_bytes(const Shape& s) {
  int64_t bytes = algorithm_workspace_bytes(s);
  if (s.backward) bytes += query_sum_bytes(s, s.head_dim + 1) + s.batch * 2 * 4;
  return bytes;
}

}  // namespace longnet::sdpa
