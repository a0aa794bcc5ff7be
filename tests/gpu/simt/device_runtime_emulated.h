// Stands in for tests/simt/device_runtime_emulated.h in gpu_test: a real runtime counts nothing and
// has the memory that it has, so tests that ask for more are skipped from there on.
#pragma once

#include <cstdint>

#include "simt/emulator.h"

namespace longnet::simt {

struct RuntimeCalls {
  int64_t allocations = 0, host_allocations = 0, streams = 0, events = 0;
};
inline RuntimeCalls runtime_calls() { skip_rest("a real GPU's runtime does not count its calls"); }

class Capacity {
 public:
  explicit Capacity(int64_t) { skip_rest("a real GPU's memory has the size that it has"); }
  ~Capacity() {}  // not trivial, so that a Capacity is never an unused variable
};

inline constexpr int kEarlyEvents = 90;

}  // namespace longnet::simt
