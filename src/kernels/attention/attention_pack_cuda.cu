// Kernels of attention_pack_cuda.h: rows into packed bf16 operands and back, and the merge by
// log-sum-exp.
//
// A block walks tiles of one span. A row belongs to 2^n >= D / 8 neighbouring lanes of one warp, 8
// elements each, read and written in pieces of 16 bytes; a thread goes down its column, so that
// angles follow by one complex product in double per pair and row (error 1e-15) after one sine and
// cosine. Bytes: each row once in, once out. No shared memory, no atomics: a row has one writer.
#include <cmath>

#include "core/context.h"
#include "kernels/attention/attention_pack_cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

namespace longnet::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kSteps = 16;  // rows that a thread takes one below the other
constexpr int kMaxPairs = 128;

/// How positions turn pairs; enabled false: not at all.
struct Turning {
  bool enabled;
  int64_t dilation;
  double angle[kMaxPairs];   // radians per token
  double growth[kMaxPairs];  // log of the xPos factor per token, sign of query or key applied
};

struct Job {
  const RowSpan* spans;
  const StridedRows* tensors;
  int64_t rows_per_sequence;
  int32_t tensor_step, head_dim;
  int32_t lanes;  // of one row
};

/// 8 floats of a row.
struct Eight {
  float x[8];
};

__device__ __forceinline__ Eight load(const float* from) {
  const float4 a = *reinterpret_cast<const float4*>(from);
  const float4 b = *reinterpret_cast<const float4*>(from + 4);
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}
__device__ __forceinline__ Eight load(const uint16_t* from) {
  const uint4 v = *reinterpret_cast<const uint4*>(from);
  const unsigned word[4] = {v.x, v.y, v.z, v.w};
  Eight e;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    e.x[2 * i] = __uint_as_float(word[i] << 16);
    e.x[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
  }
  return e;
}
__device__ __forceinline__ void store(float* to, const Eight& e) {
  *reinterpret_cast<float4*>(to) = make_float4(e.x[0], e.x[1], e.x[2], e.x[3]);
  *reinterpret_cast<float4*>(to + 4) = make_float4(e.x[4], e.x[5], e.x[6], e.x[7]);
}
__device__ __forceinline__ void store(uint16_t* to, const Eight& e) {
  unsigned word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    word[i] = static_cast<unsigned>(float_to_bf16(e.x[2 * i])) |
              static_cast<unsigned>(float_to_bf16(e.x[2 * i + 1])) << 16;
  *reinterpret_cast<uint4*>(to) = make_uint4(word[0], word[1], word[2], word[3]);
}

/// The turns of four pairs at one position, moved on by equal steps.
struct Turner {
  double2 turn[4], step[4];

  /// d: first element of the column; stride: tokens between the rows of a thread.
  __device__ __forceinline__ void start(const Turning& t, int d, int64_t position, int64_t stride) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      turn[i] = at(t, d / 2 + i, position);
      step[i] = at(t, d / 2 + i, stride);
    }
  }
  __device__ __forceinline__ void advance() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const double2 a = turn[i], b = step[i];
      turn[i] = make_double2(a.x * b.x - a.y * b.y, a.y * b.x + a.x * b.y);
    }
  }
  /// back: the transposed map.
  __device__ __forceinline__ void apply(Eight& e, bool back) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float c = static_cast<float>(turn[i].x);
      const float s = back ? -static_cast<float>(turn[i].y) : static_cast<float>(turn[i].y);
      const float a = e.x[2 * i], b = e.x[2 * i + 1];
      e.x[2 * i] = a * c - b * s;
      e.x[2 * i + 1] = b * c + a * s;
    }
  }

 private:
  __device__ __forceinline__ static double2 at(const Turning& t, int pair, int64_t position) {
    double sine, cosine;
    sincos(static_cast<double>(position) * t.angle[pair], &sine, &cosine);
    const double factor = exp(static_cast<double>(position) * t.growth[pair]);
    return make_double2(cosine * factor, sine * factor);
  }
};

/// What a thread has to do with rows: body(tensor row, its slot and sequence, packed row, turner).
/// Runs of a warp stay together: body is called with valid = false where there is no row. A
/// thread's column is in [0, D) if valid.
template <bool turned, typename Body>
__device__ __forceinline__ void for_rows(const Job& job, const Turning& turning, Body body) {
  const RowSpan span = job.spans[blockIdx.x];
  const StridedRows tensor = job.tensors[span.source * job.tensor_step];
  const int64_t b = blockIdx.z;
  const int lane = threadIdx.x % job.lanes, d = 8 * lane;
  const int rows = kThreads / job.lanes;  // of the block, side by side
  const bool rotate = turned && tensor.rotate != 0;
  const int tile_rows = rows * kSteps;
  for (int tile = static_cast<int>(blockIdx.y); tile * tile_rows < span.count;
       tile += static_cast<int>(gridDim.y)) {
    const int first = tile * tile_rows + static_cast<int>(threadIdx.x) / job.lanes;
    Turner turner;
    if (rotate && d < job.head_dim)
      turner.start(turning, d, span.position + first * turning.dilation, rows * turning.dilation);
    for (int k = 0; k < kSteps; ++k) {
      const int i = first + k * rows;
      const bool valid = i < span.count && d < job.head_dim;
      const int64_t slot = span.slot + i * span.step;
      body(tensor, b, slot, span.head, d,
           (b * job.rows_per_sequence + span.packed_row + i) * job.head_dim + d, valid, rotate,
           turner);
      if (rotate) turner.advance();
    }
  }
}

template <typename T>
__device__ __forceinline__ T* at(const StridedRows& tensor, int64_t b, int64_t slot, int64_t head,
                                 int d) {
  return static_cast<T*>(tensor.data) + b * tensor.batch + slot * tensor.slot + head * tensor.head +
         d;
}

/// Grid: (spans, tiles, B).
template <typename T, bool turned>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(uint16_t* packed, Job job, Turning turning) {
  for_rows<turned>(job, turning,
                   [&](const StridedRows& tensor, int64_t b, int64_t slot, int64_t head, int d,
                       int64_t to, bool valid, bool rotate, const Turner& turner) {
                     if (!valid) return;
                     Eight e = load(at<const T>(tensor, b, slot, head, d));
                     if (rotate) turner.apply(e, false);
                     store(packed + to, e);
                   });
}

/// Grid: (spans, tiles, B).
__global__ void __launch_bounds__(kThreads)
    pack_results_kernel(uint16_t* packed_out, float* packed_lse, Job job, LseRows lse) {
  for_rows<false>(job, Turning{},
                  [&](const StridedRows& tensor, int64_t b, int64_t slot, int64_t head, int d,
                      int64_t to, bool valid, bool, const Turner&) {
                    if (!valid) return;
                    store(packed_out + to, load(at<const float>(tensor, b, slot, head, d)));
                    if (d == 0)
                      packed_lse[to / job.head_dim] =
                          lse.data[b * lse.batch + head * lse.head + slot * lse.slot];
                  });
}

/// Grid: (spans, tiles, B). out' = (exp(a) out + exp(c) o) / (exp(a) + exp(c)), lse' = log of the
/// divisor; a: running lse, c: the branch's.
__global__ void __launch_bounds__(kThreads)
    merge_kernel(Job job, LseRows lse, const uint16_t* packed_out, const float* packed_lse) {
  for_rows<false>(job, Turning{},
                  [&](const StridedRows& tensor, int64_t b, int64_t slot, int64_t head, int d,
                      int64_t from, bool valid, bool, const Turner&) {
                    float* const running =
                        lse.data + b * lse.batch + head * lse.head + (valid ? slot : 0) * lse.slot;
                    const float a = valid ? *running : 0.0f;
                    const float c = valid ? packed_lse[from / job.head_dim] : 0.0f;
                    __syncwarp();  // all lanes of a row have read its lse
                    if (!valid || c == -INFINITY) return;
                    const float peak = fmaxf(a, c);
                    const float old_weight = expf(a - peak), weight = expf(c - peak);
                    const float sum = old_weight + weight;
                    float* const out = at<float>(tensor, b, slot, head, d);
                    const Eight o = load(packed_out + from);
                    Eight e = {};
                    if (old_weight != 0.0f) e = load(out);
#pragma unroll
                    for (int i = 0; i < 8; ++i)
                      e.x[i] = (old_weight * e.x[i] + weight * o.x[i]) / sum;
                    store(out, e);
                    if (d == 0) *running = peak + logf(sum);
                  });
}

/// Grid: (spans, tiles, B).
template <bool turned>
__global__ void __launch_bounds__(kThreads)
    add_kernel(const uint16_t* packed, Job job, Turning turning) {
  for_rows<turned>(job, turning,
                   [&](const StridedRows& tensor, int64_t b, int64_t slot, int64_t head, int d,
                       int64_t from, bool valid, bool rotate, const Turner& turner) {
                     if (!valid) return;
                     Eight e = load(packed + from);
                     if (rotate) turner.apply(e, true);
                     float* const to = at<float>(tensor, b, slot, head, d);
                     const Eight sum = load(to);
#pragma unroll
                     for (int i = 0; i < 8; ++i) e.x[i] += sum.x[i];
                     store(to, e);
                   });
}

Turning turning_of(const RowPositions& positions, int64_t head_dim) {
  Turning t{};
  t.dilation = positions.dilation;
  t.enabled = positions.rotary != nullptr && positions.rotary->enabled();
  if (!t.enabled) return t;
  const RotaryOptions& o = positions.rotary->options();
  const double width = static_cast<double>(head_dim), sign = positions.key ? -1.0 : 1.0;
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    t.angle[i] = std::pow(o.base, -2.0 * static_cast<double>(i) / width);
    if (o.position == Position::kXpos)
      t.growth[i] = sign * std::log((2.0 * static_cast<double>(i) + 0.4 * width) / (1.4 * width)) /
                    o.xpos_scale_base;
  }
  return t;
}

struct Launch {
  Job job{};
  dim3 grid;

  explicit Launch(const SpanList& list) {
    LN_CHECK(list.head_dim % 8 == 0 && list.head_dim <= 2 * kMaxPairs, "packed rows of {} elements",
             list.head_dim);
    LN_CHECK(list.count <= INT32_MAX && list.batch <= 65535, "{} row spans of {} sequences",
             list.count, list.batch);
    int lanes = 1;
    while (8 * lanes < list.head_dim) lanes *= 2;
    job = {list.spans,
           list.tensors,
           list.rows_per_sequence,
           list.tensor_step,
           static_cast<int32_t>(list.head_dim),
           lanes};
    const int64_t tile_rows = kThreads / lanes * kSteps;
    const int64_t tiles = std::min<int64_t>((list.longest + tile_rows - 1) / tile_rows, 65535);
    grid = dim3(static_cast<unsigned>(list.count), static_cast<unsigned>(tiles),
                static_cast<unsigned>(list.batch));
  }
};

}  // namespace

void sdpa_pack_rows(Context& context, void* packed, const SpanList& list, DType type,
                    const RowPositions& positions) {
  const Launch l(list);
  const Turning turning = turning_of(positions, list.head_dim);
  const bool wide = type == DType::kF32;
  const auto kernel =
      wide ? (turning.enabled ? pack_kernel<float, true> : pack_kernel<float, false>)
           : (turning.enabled ? pack_kernel<uint16_t, true> : pack_kernel<uint16_t, false>);
  launch(kernel, l.grid, kThreads, 0, context.stream(), static_cast<uint16_t*>(packed), l.job,
         turning);
}

void sdpa_pack_results(Context& context, void* packed_out, float* packed_lse, const SpanList& list,
                       const LseRows& lse) {
  const Launch l(list);
  launch(pack_results_kernel, l.grid, kThreads, 0, context.stream(),
         static_cast<uint16_t*>(packed_out), packed_lse, l.job, lse);
}

void sdpa_merge_rows(Context& context, const SpanList& list, const LseRows& lse,
                     const void* packed_out, const float* packed_lse) {
  const Launch l(list);
  launch(merge_kernel, l.grid, kThreads, 0, context.stream(), l.job, lse,
         static_cast<const uint16_t*>(packed_out), packed_lse);
}

void sdpa_add_rows(Context& context, const SpanList& list, const void* packed,
                   const RowPositions& positions) {
  const Launch l(list);
  const Turning turning = turning_of(positions, list.head_dim);
  launch(turning.enabled ? add_kernel<true> : add_kernel<false>, l.grid, kThreads, 0,
         context.stream(), static_cast<const uint16_t*>(packed), l.job, turning);
}

}  // namespace longnet::cuda
