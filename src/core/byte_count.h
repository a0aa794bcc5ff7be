// Arithmetic on sizes that a configuration asks for: a sum or product beyond 2^63 is an error.
#pragma once

#include <cstdint>

#include "core/error.h"

namespace longnet {

/// Throws the Error of a size that no machine can address. what: whose size it is, "a tensor f32[3, 4]".
[[noreturn]] inline void throw_beyond_64_bits(const std::string& what) {
  throw Error(
      "{}: more than 2^63 bytes; use a shorter train.sequence_length, a smaller train.batch_size "
      "or a smaller model",
      what);
}

/// a b, both sizes or counts; throws Error as above.
inline int64_t checked_product(int64_t a, int64_t b, const char* what) {
  int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) throw_beyond_64_bits(what);
  return result;
}

/// a + b, both sizes or counts; throws Error as above.
inline int64_t checked_sum(int64_t a, int64_t b, const char* what) {
  int64_t result = 0;
  if (__builtin_add_overflow(a, b, &result)) throw_beyond_64_bits(what);
  return result;
}

}  // namespace longnet
