// Expresses a list of SegmentTask for a library that supports plain attention only (cuDNN): groups
// of equal problems, and where their rows lie. Integers and addresses; no GPU, no memory.
//
// A library's SDPA problem is [batch, heads, rows, D]: every (batch, head) has the same numbers of
// query and key rows, and either every query sees every key, or query row i sees the key rows j <=
// i. A unit is one head of one segment under one such mask. A segment whose key rows begin before
// its query rows (gathered from earlier ranks) becomes two units, one full and one causal. Units of
// one group never share a query row, so their results can be merged at once. This file runs
// nothing; attention_sdpa.cpp does.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"

namespace longnet::sdpa {

/// Key rows [begin, begin + count) of one KeySource, counted from the head's first row there.
struct KeyPiece {
  int64_t source = 0, begin = 0, count = 0;
  bool operator==(const KeyPiece&) const = default;
};

struct Unit {
  int64_t task = 0, head = 0;
  int64_t query_begin = 0;     // first query row used, counted from the head's first one
  std::vector<KeyPiece> keys;  // Group::key_rows in all, in rising row order
};

struct Group {
  int64_t query_rows = 0, key_rows = 0;  // of every unit, both at least 1
  bool causal = false;
  int64_t heads = 1;        // units are [tasks][heads]; 1 where segments keep different heads
  std::vector<Unit> units;  // in one sequence; every sequence of the batch has the same

  int64_t tasks() const { return static_cast<int64_t>(units.size()) / heads; }
};

struct GroupOptions {
  bool causal = true;
  bool in_place = false;  // split heads into runs whose rows have regular addresses
  int64_t batch = 1, head_dim = 64;
};

/// Covers every pair of query and key in the segments once. A group has at most 2^25 elements per
/// operand and 32768 units over all sequences, or it is a single unit.
std::vector<Group> make_groups(std::span<const SegmentTask> segments, const GroupOptions& options);

/// Upper bounds of what make_groups returns for these segments or fewer of them, in place or not.
struct GroupBound {
  int64_t query_rows = 0, key_rows = 0;
  int64_t units = 0, pieces = 0;  // in all groups together
  int64_t group_units = 0;        // in one group
};
std::vector<GroupBound> largest_groups(std::span<const SegmentTask> segments,
                                       const GroupOptions& options);

/// Row i of head h of batch entry n lies at data + n batch + h head + i row, in elements.
struct Strides {
  int64_t batch = 0, head = 0, row = 0;
  auto operator<=>(const Strides&) const = default;
};

/// One problem, and the key of what a library has prepared for it. Operands not listed here are
/// packed: {heads rows D, rows D, D}.
struct Shape {
  int64_t batch = 1, heads = 1, query_rows = 1, key_rows = 1, head_dim = 8;
  bool causal = false, backward = false;
  float scale = 1.0f;
  Strides query, key, value, grad_out;
  auto operator<=>(const Shape&) const = default;
};
inline Strides packed_strides(int64_t heads, int64_t rows, int64_t head_dim) {
  return {heads * rows * head_dim, rows * head_dim, head_dim};
}
/// The forward's problem of a group with packed query, key and value.
Shape packed_shape(const Group& group, int64_t batch, int64_t head_dim, float scale);

/// Set if a tensor's rows can be read in place: bf16, one piece per unit, regular addresses aligned
/// to 16 bytes. Batch entries are ordered by sequence, then by task.
struct InPlace {
  const void* data = nullptr;
  Strides strides;
};
std::optional<InPlace> queries_in_place(const Group& group, std::span<const SegmentTask> segments,
                                        const TensorView& tensor);
/// member: &KeySource::key or &KeySource::value.
std::optional<InPlace> keys_in_place(const Group& group, std::span<const SegmentTask> segments,
                                     TensorView KeySource::*member);

/// Why the library must not get this problem although it would accept it: its results are known to
/// be wrong there, on every GPU and version. Empty if nothing is known. Known cases are backwards
/// of 64 (mod 128) keys without a causal mask that covers what lies past them (NaN in grad_query),
/// and of a single query (NaN in grad_key and grad_value).
std::string known_defect(const Shape& shape);

/// Bound of the library's scratch for one problem, in bytes; enough for cuDNN's flash attention. It
/// is a formula and not a query to the library, because memory is also counted without a GPU; cuDNN
/// is asked only for algorithms within the bound. Forward: 16 MiB. Backward: two float sums of
/// grad_query (cuDNN's frontend keeps one, algorithms for GPUs before 9.0 another) and one of
/// grad_out out, rows padded to 64, two lengths per batch entry, and 32 MiB.
int64_t library_workspace_bytes(const Shape& shape);
/// The algorithm's own part of it, without what the frontend keeps there.
int64_t algorithm_workspace_bytes(const Shape& shape);

}  // namespace longnet::sdpa
