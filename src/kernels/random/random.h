// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC'11), keyed by (seed, name, index).
//
// Element i of a named tensor depends on (seed, name, i) alone, not on ranks, threads or order.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "core/context.h"
#include "core/tensor.h"

namespace longnet {

/// Four 32-bit words for (key, counter): Philox4x32 with 10 rounds, as in Random123.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// A stream of random numbers for one purpose.
class RandomStream {
 public:
  RandomStream(uint64_t seed, std::string_view name);
  uint32_t bits(uint64_t index) const;   // all 32
  double uniform(uint64_t index) const;  // [0, 1), 53 bits
  double normal(uint64_t index) const;   // N(0, 1), Box-Muller

 private:
  std::array<uint32_t, 4> block(uint64_t index) const;

  std::array<uint32_t, 2> key_;
  std::array<uint32_t, 2> name_;
};

/// values[i] = uniform in [-bound, bound).
void fill_uniform(Context& context, const TensorView& values, uint64_t seed, std::string_view name,
                  double bound);
/// values[i] = N(0, deviation^2).
void fill_normal(Context& context, const TensorView& values, uint64_t seed, std::string_view name,
                 double deviation);

}  // namespace longnet
