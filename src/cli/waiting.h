// How threads wait for each other, decided before OpenMP is there.
#pragma once

namespace longnet {

/// Threads that wait spin for a bounded time and then sleep, unless OMP_WAIT_POLICY, GOMP_SPINCOUNT
/// or KMP_BLOCKTIME says something else. OpenMP's library reads them when it is loaded, so this sets
/// them and starts the program anew, once, in the same process; to be called first thing in main,
/// before MPI. Returns where nothing is to be done or it cannot be done.
void bound_spinning(char** argv);

}  // namespace longnet
