#include "dist/pause.h"

#include <algorithm>
#include <chrono>
#include <thread>

namespace longnet::internal {

// Messages between ranks that are equally far come within the first bound. A sleep lasts at least
// the kernel's timer slack of 50 us, a tenth of that bound. Figures: bench/results/waiting.txt.
double sleep_in_wait(double waited) {
  constexpr double kPolls = 500e-6, kShare = 1.0 / 20, kLongest = 1e-3;
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
