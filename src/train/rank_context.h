// The context of a rank: its device and threads, agreed on by all ranks, and a word where threads
// have to share cores.
#pragma once

#include <string>
#include <vector>

#include "core/context.h"
#include "dist/communicator.h"

namespace longnet {

/// backend: run.backend; threads: parallel.threads, 0: as OpenMP finds. Collective. Throws on all
/// ranks, with one line in all, if a rank has no such device or more threads than there may be.
Context make_context(Communicator& world, const std::string& backend, int threads);

/// What one rank knows of its threads.
struct RankThreads {
  std::string host;
  int threads = 1;
  std::vector<int> cores;  // it may run on; empty: unknown
  int quota = 0;           // cores' worth of time for all ranks of its control group; 0: no limit
};

/// One line if the ranks of a host have more threads than cores, with what to set; empty if none
/// has. Several hosts: the first.
std::string crowded_message(const std::vector<RankThreads>& ranks);

/// Rank 0 logs that line as a warning. On a GPU nothing: its threads do little. Collective.
void warn_if_crowded(Communicator& world, const Context& context);

}  // namespace longnet
