// What a rank does between two looks at a message that has not come: give way, and after a while
// sleep. A rank that only gives way takes its share of a core from whoever works on it: another
// rank, a thread, another program.
#pragma once

namespace longnet::internal {

/// Called in a loop that waits on the host; waited: seconds since the wait began. Returns at once
/// in the first ten milliseconds, and later after a sleep that is short beside the wait.
void pause_in_wait(double waited);

/// Seconds that pause_in_wait sleeps; 0: it only gives way.
double sleep_in_wait(double waited);

}  // namespace longnet::internal
