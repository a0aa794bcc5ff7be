// Measures the attention kernels beside the machine's multiply-add limit, in the same run.
#pragma once

#include <cstdint>
#include <vector>

#include "core/context.h"
#include "core/sequence_plan.h"

namespace longnet {

struct AttentionBenchOptions {
  int64_t batch = 1, tokens = 16384, heads = 8, head_dim = 64;
  std::vector<Branch> branches{{2048, 1}};
  bool causal = true;
  int repetitions = 9;  // timed ones, after one for warming up
};

/// Seconds of one call over all branches, and what follows from them.
struct AttentionBenchTiming {
  double flops = 0;  // only the pairs that the mask keeps: 4 D forward, 10 D backward each
  double median_seconds = 0, fastest_seconds = 0, slowest_seconds = 0;
  double gflops = 0;        // at the median
  double share_of_fma = 0;  // of the limit measured in the same run
  double largest_error =
      0;  // against the reference on a few queries, relative to the largest value
};

struct AttentionBenchResult {
  double fma_gflops = 0;     // measured limit of the threads in use
  double begin_seconds = 0;  // median of attention_begin (o = 0), not part of forward: once for all
                             // branches of a layer
  AttentionBenchTiming forward, backward;
};

/// Throws Error if a result differs from the reference by more than rounding.
AttentionBenchResult bench_attention(Context& context, const AttentionBenchOptions& options);

}  // namespace longnet
