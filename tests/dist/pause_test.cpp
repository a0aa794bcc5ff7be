// What a waiting rank does meanwhile: polls at first, then sleeps a share of the wait.
#include "dist/pause.h"

#include <gtest/gtest.h>
#include <time.h>

#include <chrono>

namespace longnet::internal {
namespace {

double processor_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

TEST(Pause, IsShortBesideTheWait) {
  EXPECT_EQ(sleep_in_wait(0), 0);
  EXPECT_EQ(sleep_in_wait(9e-3), 0);
  for (const double waited : {10e-3, 100e-3, 1.0, 1000.0}) {
    EXPECT_GT(sleep_in_wait(waited), 0);
    EXPECT_LE(sleep_in_wait(waited), waited / 50);
    EXPECT_LE(sleep_in_wait(waited), 1e-3);
  }
}

TEST(Pause, LongWaitLeavesTheProcessorToOthers) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  const auto waited = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  const double before = processor_seconds();
  while (waited() < 0.3) pause_in_wait(waited());
  EXPECT_LT(processor_seconds() - before, 0.15) << "of 0.3 s";
}

}  // namespace
}  // namespace longnet::internal
