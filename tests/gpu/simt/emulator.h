// Stands in for tests/simt/emulator.h in gpu_test, where the same tests run on a real GPU: orders
// are runs, nothing is instrumented, and there are no defects, so what follows one is skipped.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>

namespace longnet::simt {

/// Threads run as the GPU likes: an order is only the name of a run.
enum class Order { kAscending, kDescending, kRandom, kSkewed };
inline const char* order_name(Order order) {
  return order == Order::kAscending ? "first run" : "another run";
}
inline void set_order(Order, uint64_t) {}

inline bool emulated() { return false; }
inline bool race_checked() { return false; }
inline bool address_checked() { return false; }

/// Ends the running test as skipped (failed, if something has failed before), from any depth.
[[noreturn]] inline void skip_rest(const char* reason) {
  GTEST_MESSAGE_("", ::testing::TestPartResult::kSkip) << reason;
  throw ::testing::AssertionException(
      ::testing::TestPartResult(::testing::TestPartResult::kSkip, __FILE__, __LINE__, reason));
}

/// For the tests' calls of Defect only: a GPU has what it has.
inline constexpr int kNoStoreMatrix = 25;

class Defect {
 public:
  explicit Defect(int) { skip_rest("kernels of a GPU build have no defects"); }
  ~Defect() {}  // not trivial, so that a Defect is never an unused variable
};

}  // namespace longnet::simt
