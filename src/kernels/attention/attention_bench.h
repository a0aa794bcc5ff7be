// Measures the attention kernels beside limits measured in the same run: the processor's
// multiply-adds, or the GPU's matrix products and cuDNN's attention alone.
#pragma once

#include <cstdint>
#include <vector>

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
  int repetitions = 9;         // timed ones, after one for warming up
  bool measure_limits = true;  // false: only the kernels themselves, no shares
};

/// Seconds of one call over all branches, and what follows from them.
struct AttentionBenchTiming {
  /// Of the pairs that the mask keeps: 4 D forward, 10 D backward each, q k^T done again included.
  double executed_flops = 0;
  double median_seconds = 0, fastest_seconds = 0, slowest_seconds = 0;
  double executed_gflops = 0;   // at the median
  double share_of_fma = 0;      // CPU: of the limit measured in the same run
  double share_of_matmul = 0;   // GPU: likewise
  double sdpa_seconds = 0;      // GPU: median of cuDNN's calls alone, without packing and merge; 0:
                                // cuDNN does not take these calls
  double share_of_sdpa = 0;     // sdpa_seconds / median_seconds
  double unmerged_seconds = 0;  // with cuDNN: likewise with packing, without merge or sums; 0: else
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

/// Runs on the context's device, with its attention(). Throws Error if a result differs from the
/// reference by more than rounding (one branch only: merged rows differ by branch, tests cover
/// them).
AttentionBenchResult bench_attention(Context& context, const AttentionBenchOptions& options);

}  // namespace longnet
