// What a list of SegmentTask is in the words of a library that knows plain attention only (cuDNN):
// groups of equal problems, and where their rows lie. Integers and addresses; no GPU, no memory.
//
// A library's SDPA problem is [batch, heads, rows, D], every (batch, head) with the same counts of
// query and key rows, and either all keys seen by all queries or key row j seen by query rows i >=
// j. A unit is one head of one segment under one such mask; a segment whose key rows begin before
// its query rows (gathered from earlier ranks) is two units, one full and one causal. Units of one
// group never share a query row, so that their results can be merged at once. It does not run
// anything: attention_sdpa.cpp does.
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

/// Every pair of query and key that the segments hold, once. A group has at most 2^25 elements per
/// operand and 32768 units over all sequences, or is one unit.
std::vector<Group> make_groups(std::span<const SegmentTask> segments, const GroupOptions& options);

/// What make_groups gives at most of units with these counts, for these segments or fewer of them,
/// in place or not.
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

/// One problem, and the key under which a library keeps what it has prepared for it. Operands that
/// are not named here are packed: {heads rows D, rows D, D}.
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
/// The forward's problem of a group whose query, key and value are packed.
Shape packed_shape(const Group& group, int64_t batch, int64_t head_dim, float scale);

/// Where a tensor's rows can be read in place: bf16, one piece per unit, regular addresses, all
/// aligned to 16 bytes. Batch entries are sequence after sequence, tasks inside.
struct InPlace {
  const void* data = nullptr;
  Strides strides;
};
std::optional<InPlace> queries_in_place(const Group& group, std::span<const SegmentTask> segments,
                                        const TensorView& tensor);
/// member: &KeySource::key or &KeySource::value.
std::optional<InPlace> keys_in_place(const Group& group, std::span<const SegmentTask> segments,
                                     TensorView KeySource::*member);

/// Why the library must not be given this problem although it would take it: its results are known
/// to be wrong there, whatever the GPU and the version. Empty: nothing is known. These are
/// backwards of 64 (mod 128) keys without a causal mask that covers what lies past them (NaN in
/// grad_query), and of a single query (NaN in grad_key and grad_value).
std::string known_defect(const Shape& shape);

/// Scratch that the library may use for one problem, bytes; enough for cuDNN's flash attention. It
/// is a bound and not a question to the library, because memory is counted where there is no GPU:
/// cuDNN is asked for algorithms that keep to it. Forward: 16 MiB. Backward: float sums of
/// grad_query twice (cuDNN's frontend keeps one, algorithms for GPUs before 9.0 another) and of
/// grad_out out, rows padded to 64, two lengths per batch entry, and 32 MiB.
int64_t library_workspace_bytes(const Shape& shape);
/// The part of it that is the algorithm's own: without what the frontend keeps there.
int64_t algorithm_workspace_bytes(const Shape& shape);

}  // namespace longnet::sdpa
