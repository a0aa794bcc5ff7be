// The clock of waits and measurements.
#pragma once

#include <chrono>

namespace longnet {

/// Seconds on a clock that only rises; its zero means nothing. Signal handlers may call it.
inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace longnet
