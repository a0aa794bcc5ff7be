// Measured limits of this machine, to which speed figures are related.
#pragma once

#include "core/context.h"

namespace longnet {

struct MachinePeak {
  double fma_gflops_f32 = 0;  // register-only fused multiply-adds, best ISA in use, all threads; 0
                              // on a GPU
  double matmul_gflops = 0;   // linear layer through the same library as the model's: the better of
      // 512^3 and 1024^3 on the CPU; on a GPU 8192^3 (f32: 4096^3) of random
      // numbers, or less where memory is short
};

/// A limit that shares refer to. A rate above the measured limit raises it, so that no share
/// exceeds one: on a machine that was busy during the measurement the result is too low.
class PeakRate {
 public:
  explicit PeakRate(double gflops = 0) : gflops_(gflops) {}
  double gflops() const { return gflops_; }
  /// The share of a rate in GFLOP/s, 0 to 1.
  double share(double rate) {
    if (rate > gflops_) gflops_ = rate;
    return gflops_ > 0 ? rate / gflops_ : 0;
  }

 private:
  double gflops_;
};

/// Runs for about `seconds` on the Context's threads and takes the best of many short repetitions,
/// because these are limits. When several ranks share a host, call it on all of them at once: each
/// then measures its share of the host. dtype: type of the matrix product's operands, f32 or bf16.
/// On a GPU it temporarily uses up to 700 MB of memory.
MachinePeak measure_machine(Context& context, double seconds = 0.3, DType dtype = DType::kF32);

/// Measures only the multiply-add limit, in GFLOP/s of all threads (a multiply-add counts two).
double measure_fma_gflops(Context& context, double seconds = 0.1);

namespace internal {
/// `rounds` rounds of independent multiply-adds on one thread; returns the FLOPs done. One source
/// per instruction set.
double fma_rounds_generic(int64_t rounds, float* sink);
double fma_rounds_avx2(int64_t rounds, float* sink);
double fma_rounds_avx512(int64_t rounds, float* sink);
}  // namespace internal

}  // namespace longnet
