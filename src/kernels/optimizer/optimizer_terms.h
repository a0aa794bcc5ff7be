// Shared by the dispatcher and the twins of optimizer.h: the constants of one update, and which
// terms of a block belong to a part of a sum. Not public.
#pragma once

#include <cstdint>

#include "core/clones.h"
#include "kernels/optimizer/optimizer.h"

namespace longnet {

struct AdamWFactors {
  float gradient_scale, beta1, beta2, rate, decay, inverse_correction2, eps;
};

/// What of block b lies in `part`, and whether that is all that lies in `whole`.
struct BlockPart {
  SumRange range;
  bool whole;
  LN_INLINE int64_t terms() const {
    return whole ? 1 : (range.end - 1) / kSumCell - range.begin / kSumCell + 1;
  }
};
LN_INLINE BlockPart block_part(const SumRange& whole, const SumRange& part, int64_t b) {
  const int64_t begin = b * kSumBlock, end = begin + kSumBlock;
  const SumRange mine{part.begin > begin ? part.begin : begin, part.end < end ? part.end : end};
  const SumRange all{whole.begin > begin ? whole.begin : begin, whole.end < end ? whole.end : end};
  return {mine, mine.begin == all.begin && mine.end == all.end};
}

}  // namespace longnet
