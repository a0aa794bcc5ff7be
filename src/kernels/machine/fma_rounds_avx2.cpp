// The avx2 twin of fma_rounds (machine.h).
#include "kernels/machine/machine.h"

namespace longnet::internal {
namespace {
constexpr int kLanes = 8;
#include "kernels/machine/fma_rounds.inc"
}  // namespace

double fma_rounds_avx2(int64_t rounds, float* sink) { return rounds_of(rounds, sink); }

}  // namespace longnet::internal
