// How a rank waits between two polls for a message: it yields, and after a while it sleeps. A rank
// that only yields takes its share of a core from whatever else runs on it: another rank, a thread,
// another program.
#pragma once

namespace longnet::internal {

/// Call it in a loop that waits on the host; waited: seconds since the wait began. In the first ten
/// milliseconds it returns at once; later it sleeps for a time that is short compared to the wait.
void pause_in_wait(double waited);

/// Seconds that pause_in_wait sleeps; 0: it only yields.
double sleep_in_wait(double waited);

}  // namespace longnet::internal
