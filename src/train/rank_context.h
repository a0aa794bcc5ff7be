// The context of a rank: its device and threads, agreed on by all ranks, and a warning if threads
// share cores.
#pragma once

#include <string>
#include <vector>

#include "core/context.h"
#include "dist/communicator.h"

namespace longnet {

/// backend: run.backend; threads: parallel.threads, 0: OpenMP's default. Throws on all ranks, with
/// one message in total, if a rank lacks the device or asks for too many threads. Collective.
Context make_context(Communicator& world, const std::string& backend, int threads);

/// What one rank knows about its threads.
struct RankThreads {
  std::string host;
  int threads = 1;
  std::vector<int> cores;  // it may run on; empty: unknown
  int quota = 0;           // cores' worth of time for all ranks of its control group; 0: no limit
};

/// One line, with the remedy, if the ranks of a host have more threads than cores; empty otherwise.
/// With several such hosts: the first.
std::string crowded_message(const std::vector<RankThreads>& ranks);

/// Rank 0 logs that line as a warning; not on a GPU, where the threads do little. Collective.
void warn_if_crowded(Communicator& world, const Context& context);

}  // namespace longnet
