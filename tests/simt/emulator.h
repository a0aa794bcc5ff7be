// Settings and counters of the SIMT emulator (emulator.cpp) for tests.
//
// Blocks run one at a time, each CUDA thread in its own fiber, on the calling OS thread. An order
// is a schedule: which of the threads that can run goes next. Grid-wide synchronisation and
// spinning on another block cannot run. Findings (races, divergent barriers, ...) are thrown by the
// launch.
#pragma once

#include <cstdint>

namespace longnet::simt {

enum class Order {
  kAscending,   // the lowest thread that can run; it runs ahead as far as it may
  kDescending,  // the highest
  kRandom,      // any
  kSkewed,      // warps in a random, fixed priority; any lane
};
const char* order_name(Order order);

/// From the next launch on. Blocks go in rising, falling or random order accordingly.
void set_order(Order order, uint64_t seed);

struct Counters {
  int64_t launches = 0, blocks = 0, switches = 0;
};
Counters counters();

/// What the machine may lack, as a number for Defect: stmatrix, as GPUs before sm_90.
inline constexpr int kNoStoreMatrix = 25;

/// Turns on the planted defects of this number (defects/README.md) in all kernels while it lives.
class Defect {
 public:
  explicit Defect(int number);
  ~Defect();
  Defect(const Defect&) = delete;
  Defect& operator=(const Defect&) = delete;
};

/// False in tests/gpu, where the same tests run on a real GPU.
inline bool emulated() { return true; }
/// True in the program whose kernels are compiled with the access hooks.
bool race_checked();
/// True in the program whose kernels are compiled with ASan and UBSan.
bool address_checked();

}  // namespace longnet::simt
