// Measures the attention kernels beside limits measured in the same run: the processor's
// multiply-adds, or the GPU's matrix products and cuDNN's attention alone.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/arena.h"
#include "core/context.h"
#include "core/sequence_plan.h"
#include "kernels/rotary/rotary.h"

namespace longnet {

struct AttentionBenchOptions {
  int64_t batch = 1, tokens = 16384, heads = 8, head_dim = 64;
  std::vector<Branch> branches{{2048, 1}};
  bool causal = true;
  DType dtype = DType::kF32;  // of query, key, value and the incoming gradient
  Position position = Position::kNone;
  int repetitions = 9;  // timed ones, after one to warm up
  /// An earlier attention_bench_limit(), shared by several runs; 0: no shares. Without a value the
  /// limit is measured before and after the run, and the larger result counts.
  std::optional<double> limit_gflops;
};

/// Seconds of one call over all branches, and what follows from them.
struct AttentionBenchTiming {
  /// FLOPs of the pairs that the mask keeps: 4 D forward, 10 D backward each, including the
  /// recomputed q k^T.
  double executed_flops = 0;
  double median_seconds = 0, fastest_seconds = 0, slowest_seconds = 0;
  double executed_gflops = 0;   // at the median
  double share_of_fma = 0;      // CPU: of the limit measured in the same run
  double share_of_matmul = 0;   // GPU: likewise
  double sdpa_seconds = 0;      // GPU: median of cuDNN alone on plain problems of the same sizes,
                                // every operand contiguous; 0: cuDNN does not take them
  double share_of_sdpa = 0;     // sdpa_seconds / median_seconds
  double unmerged_seconds = 0;  // with cuDNN: median of whole calls whose results are neither
                                // merged nor added; 0: else
  /// GPU: median host time of one call of the three above. It is hidden where it is smaller than
  /// the seconds above; where it is about as large, the host is the limit.
  double host_seconds = 0, sdpa_host_seconds = 0, unmerged_host_seconds = 0;
  double largest_error =
      0;  // against the reference on a few queries, relative to the largest value
};

struct AttentionBenchResult {
  double fma_gflops = 0;     // measured limit of the threads in use; 0 on a GPU
  double matmul_gflops = 0;  // measured limit of the GPU for dtype; 0 on the CPU
  double begin_seconds = 0;  // median of attention_begin (o = 0), not part of forward: once for all
                             // branches of a layer
  int64_t calls_per_sample = 1;  // a GPU's samples are several calls between two waits
  AttentionBenchTiming forward, backward;
};

/// The tensors [B, N, H, D] that runs of one shape and type read, drawn once: normal numbers with a
/// period of about a million, so that no two rows are equal.
class AttentionBenchInputs {
 public:
  AttentionBenchInputs(Context& context, const AttentionBenchOptions& options);

  struct Rows {
    TensorView device, host;  // host: f32, what the device's type keeps of the numbers
  };
  Rows query, key, value, grad_out;

 private:
  Rows draw(Context& context, const AttentionBenchOptions& options, const char* name);

  Arena arena_, host_arena_;
};

/// The limit that shares refer to, in GFLOP/s: the multiply-adds of the threads in use; on a GPU
/// its matrix products of this type.
double attention_bench_limit(Context& context, DType dtype);

/// Runs on the context's device with its attention(). Throws Error if a result differs from the
/// reference by more than rounding (checked with one branch only: merged rows differ by branch, and
/// tests cover them).
AttentionBenchResult bench_attention(Context& context, const AttentionBenchOptions& options,
                                     const AttentionBenchInputs& inputs);
/// bench_attention() with inputs that it draws itself.
AttentionBenchResult bench_attention(Context& context, const AttentionBenchOptions& options);

}  // namespace longnet
