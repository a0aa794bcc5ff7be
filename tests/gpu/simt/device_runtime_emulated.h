// Stands in for tests/simt/device_runtime_emulated.h in gpu_test: a real runtime counts nothing and
// has the memory that it has, so tests that ask for more are skipped from there on.
#pragma once

#include <cstdint>
#include <string>

#include "simt/emulator.h"

namespace longnet::simt {

struct RuntimeCalls {
  int64_t allocations = 0, host_allocations = 0, streams = 0, events = 0;
  int64_t host_bytes = 0, waits = 0;
};
inline RuntimeCalls runtime_calls() { skip_rest("a real GPU's runtime does not count its calls"); }

class Capacity {
 public:
  explicit Capacity(int64_t) { skip_rest("a real GPU's memory has the size that it has"); }
  ~Capacity() {}  // not trivial, so that a Capacity is never an unused variable
};

struct GpuKind {
  std::string name = "GPU";
  int major = 0, minor = 0;
  int64_t shared_bytes = 0;
};
class OtherGpu {
 public:
  explicit OtherGpu(const GpuKind&) { skip_rest("a real GPU is what it is"); }
  ~OtherGpu() {}
};

class NoCudnn {
 public:
  explicit NoCudnn(const std::string&) {
    skip_rest("whether cuDNN is there was decided by the build");
  }
  ~NoCudnn() {}
};

inline constexpr int kEarlyEvents = 90;

}  // namespace longnet::simt
