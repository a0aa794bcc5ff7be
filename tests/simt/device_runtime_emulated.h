// Settings and counters of the emulated device runtime (device_runtime_emulated.cpp) for tests.
#pragma once

#include <cstdint>
#include <string>

namespace longnet::simt {

/// Calls since the start of the program.
struct RuntimeCalls {
  int64_t allocations = 0, host_allocations = 0, streams = 0, events = 0;
  int64_t host_bytes = 0;  // page-locked, held now
  int64_t waits = 0;       // times that the host has asked for one event and done nothing else
};
RuntimeCalls runtime_calls();

/// The GPU has so many bytes while this lives (otherwise 4 GiB).
class Capacity {
 public:
  explicit Capacity(int64_t bytes);
  ~Capacity();
  Capacity(const Capacity&) = delete;
  Capacity& operator=(const Capacity&) = delete;

 private:
  int64_t before_;
};

struct GpuKind {
  std::string name = "emulator";
  int major = 8, minor = 0;           // compute capability
  int64_t shared_bytes = 163 * 1024;  // that a block may ask for: what a GPU of 8.0 has
};
/// The GPU is this one while it lives.
class OtherGpu {
 public:
  explicit OtherGpu(const GpuKind& kind);
  ~OtherGpu();
  OtherGpu(const OtherGpu&) = delete;
  OtherGpu& operator=(const OtherGpu&) = delete;

 private:
  GpuKind before_;
};

/// The stand-in of cuDNN (sdpa_emulated.cpp) is absent for this reason while this lives.
class NoCudnn {
 public:
  explicit NoCudnn(const std::string& reason);
  ~NoCudnn();
  NoCudnn(const NoCudnn&) = delete;
  NoCudnn& operator=(const NoCudnn&) = delete;
};

/// Carries out the copies that wait on a stream: to be called by whatever runs at once in place of
/// work on it (kernels, library calls). Ends the program after LN_STREAM_PLACES (1000) such calls
/// behind work that does not end: a host with a GPU would wait in the call, for ever.
void finish_copies(void* stream);

/// Defect: events seem to have passed before what they stand for has happened.
inline constexpr int kEarlyEvents = 90;

}  // namespace longnet::simt
