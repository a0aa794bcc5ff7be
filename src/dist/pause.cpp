// See pause.h.
#include "dist/pause.h"

#include <algorithm>
#include <chrono>
#include <thread>

namespace longnet::internal {

// In a step ranks wait milliseconds for each other; a core that slept in these took 10 % longer
// over a step. A rank that waits longer sleeps a fiftieth of its wait. Figures:
// bench/results/waiting.txt.
double sleep_in_wait(double waited) {
  constexpr double kPolls = 10e-3, kShare = 1.0 / 50, kLongest = 1e-3;
  return waited < kPolls ? 0 : std::min(waited * kShare, kLongest);
}

void pause_in_wait(double waited) {
  const double seconds = sleep_in_wait(waited);
  if (seconds > 0)
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  else
    std::this_thread::yield();
}

}  // namespace longnet::internal
