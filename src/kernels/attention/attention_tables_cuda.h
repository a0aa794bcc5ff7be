// How a call of attention is told to a kernel: the rows of every head of every segment, where the
// keys of every source lie, which tiles of rows are whose work, and the angles of positions. One
// description for the plain kernels (attention_cuda.cu) and the native ones
// (attention_native_cuda.cu, attention_native_backward_cuda.cu). For *.cu files only.
//
// Row i of a head of a segment is global token `token + i dilation`; queries and keys are compared
// by these row numbers, whatever memory the rows lie in. Tables builds everything in host memory,
// copies it into the workspace on the Context's stream and starts the kernels that fill tables of
// angles and, where asked, packed rows. Nothing waits.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/cuda/numbers.h"

namespace longnet::cuda::attention {

constexpr int kMaxPairs = 128;
constexpr int kFine = 256;  // positions in the fine table of angles

// --- 1. what kernels are told

/// Numbers that are f32 or bf16 by a flag that all threads share.
struct Input {
  const void* data;
  bool bf16;

  __device__ __forceinline__ float operator[](int64_t i) const {
    return bf16 ? bf16_to_float(static_cast<const uint16_t*>(data)[i])
                : static_cast<const float*>(data)[i];
  }
  __host__ __device__ __forceinline__ Input operator+(int64_t i) const {
    return {static_cast<const char*>(data) + i * (bf16 ? 2 : 4), bf16};
  }
  __device__ __forceinline__ const uint16_t* half() const {
    return static_cast<const uint16_t*>(data);
  }
};

/// The query rows of one head of one segment: query rows i = 0 .. count - 1 have row number
/// first + i, lie on axis 1 of out, lse, grad_out, ... at slot + i step, and are read at
/// query + b query_batch + i query_row (elements; from the tensor, or packed and rotated).
struct TaskHead {
  Input query;
  int64_t query_batch, query_row;
  int64_t slot, step, first, count;
  int64_t token, position;  // of row number 0: global, and measured from the segment's origin
  int32_t source_begin, source_end;
  int32_t head;
  int32_t rotate;  // 1: the rows that `query` leads to have their positions still to be applied
};

/// The key rows of one head of one source: row i = 0 .. count - 1 has row number first + i and lies
/// at key + b key_batch + i key_row, and likewise for the others; empty sources are in the list.
struct SourceHead {
  Input key, value;
  float *grad_key, *grad_value;
  int64_t key_batch, value_batch, grad_key_batch, grad_value_batch;
  int64_t key_row, value_row, grad_key_row, grad_value_row;
  int64_t first, count;
  int32_t task;
  int32_t rotate;       // 1: the rows that `key` leads to have their positions still to be applied
  int32_t rotate_back;  // 1: grad_key is of keys before rotation
};

/// One block's rows: [tile size * tile, + tile size) of TaskHead or SourceHead number `index`.
struct Item {
  int32_t index, tile;
};

/// Turns of positions p = 256 a + b as products of two tables, in double.
struct RotaryParts {
  const double2 *coarse, *fine;  // [2, coarse_count, pairs], [2, kFine, pairs]; axis 0: query, key
  int64_t coarse_first;
  int32_t coarse_count, pairs;  // pairs 0: no positions
};

struct Frequencies {
  double angle[kMaxPairs];  // radians per token
  double log_z[kMaxPairs];  // xPos: log of a query's factor per token; 0 without
};

/// One [B, L, H, D] tensor, and one that is only read.
struct Rows {
  float* data;
  int64_t batch, token, head;  // strides
};
struct InputRows {
  Input data;
  int64_t batch, token, head;  // strides
};

/// What all kernels of a call share; passed by value. Tables fills what both directions have.
struct Common {
  const TaskHead* tasks;
  const SourceHead* sources;
  const Item* items;  // of this kernel, set by the caller: query_items or key_items
  RotaryParts rotary;
  InputRows grad_out;
  Rows out, grad_query;
  float *lse, *delta;
  int64_t lse_batch, lse_head, lse_token, delta_batch, delta_head, delta_token;
  const int64_t *first_visible, *last_visible;
  int64_t first_batch, first_token, last_batch, last_token;
  int64_t dilation;
  float scale;
  int32_t head_dim;
  bool causal;
};

/// (cosine, sine) of one pair at a position, times the xPos factor. set: 0 query, 1 key.
__device__ __forceinline__ float2 turn_of(const RotaryParts& r, int set, int64_t position,
                                          int pair) {
  const int64_t a = (position >> 8) - r.coarse_first, b = position & (kFine - 1);
  const double2 x = r.coarse[(int64_t{set} * r.coarse_count + a) * r.pairs + pair];
  const double2 y = r.fine[(int64_t{set} * kFine + b) * r.pairs + pair];
  return make_float2(static_cast<float>(x.x * y.x - x.y * y.y),
                     static_cast<float>(x.y * y.x + x.x * y.y));
}

/// The same without tables.
__device__ __forceinline__ double2 turn_in_double(const Frequencies& f, int pair, int64_t position,
                                                  bool key) {
  double sine, cosine;
  sincos(static_cast<double>(position) * f.angle[pair], &sine, &cosine);
  const double factor = exp((key ? -1.0 : 1.0) * static_cast<double>(position) * f.log_z[pair]);
  return make_double2(cosine * factor, sine * factor);
}

// --- 2. the host's side

/// What a kernel wants of the tables.
struct TableRequest {
  int query_tile = 32;     // rows of a query item
  int key_tile = 0;        // rows of a key item; 0: no key items
  bool gradients = false;  // the sources' gradients are described
  /// Rows whose positions are still to be applied are rotated once and rounded to bf16, into the
  /// workspace, where `key` and `query` lead then; without, the kernel rotates what it reads.
  /// Packing wants D a multiple of 8 and rows aligned to 16 bytes.
  bool pack_keys = false, pack_queries = false;
};

/// Bytes of workspace, the same with and without positions. batch matters to packed rows only.
int64_t table_bytes(int64_t batch, int64_t head_dim, std::span<const SegmentTask> segments,
                    const TableRequest& request);

/// Cuts segments into runs, each of which packs at most kPackedBytes, or is one segment: a call of
/// any length needs little workspace. Needs no positions to be known: runs are the same with and
/// without.
inline constexpr int64_t kPackedBytes = int64_t{256} << 20;
std::vector<std::span<const SegmentTask>> table_runs(int64_t batch, int64_t head_dim,
                                                     std::span<const SegmentTask> segments,
                                                     const TableRequest& request);

/// Angles of positions, all zero without.
Frequencies frequencies_of(const AttentionOptions& options, int64_t head_dim);

inline Input input(const TensorView& view) { return {view.data, view.dtype == DType::kBF16}; }
inline InputRows input_rows(const TensorView& view) {
  return {input(view), view.stride[0], view.stride[1], view.stride[2]};
}
inline Rows rows_of(const TensorView& view) {
  return {static_cast<float*>(view.data), view.stride[0], view.stride[1], view.stride[2]};
}

/// Writes the tables into the workspace (table_bytes, kAlignment-aligned). Lists are those of the
/// device.
struct Tables {
  Common common{};
  const Item *query_items = nullptr, *key_items = nullptr;
  int64_t query_item_count = 0, key_item_count = 0;

  Tables(Context& context, const TensorView& query, std::span<const SegmentTask> segments,
         const AttentionOptions& options, void* workspace, const TableRequest& request);

  void set_lse(const TensorView& lse);      // [B, H, L] f32
  void set_delta(const TensorView& delta);  // [B, H, L] f32
};

/// Grid of (items, B).
dim3 item_grid(int64_t items, int64_t batch);

}  // namespace longnet::cuda::attention
