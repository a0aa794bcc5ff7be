// Measures the collectives of a communicator and, in the same run, the memory bandwidth of the
// machine as their limit. Bandwidths are defined as in nccl-tests. Prints nothing; `longnet bench`
// does.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/context.h"
#include "dist/communicator.h"

namespace longnet {

struct CollectiveBenchOptions {
  int64_t min_bytes = 64 << 10;  // sizes are doubled ...
  int64_t max_bytes = 64 << 20;  // ... up to this one, at most
  int64_t growth = 2;            // or multiplied by this, >= 2
  int repetitions = 9;           // timed ones, after two to warm up
  /// Operations between two waits; their mean is one repetition's time. 0: 20 on a GPU, as in
  /// nccl-tests, where a single one would measure its launch; 1 in host memory.
  int calls = 0;
};

struct CollectiveResult {
  std::string operation;           // "all_gather", "reduce_scatter", "all_reduce"
  int64_t bytes = 0;               // of the whole buffer: all chunks together, which are equal
  double seconds = 0;              // median over repetitions of the slowest rank's time
  double fastest_seconds = 0;      // the least
  double slowest_seconds = 0;      // the most
  double algorithm_bandwidth = 0;  // bytes / seconds, in bytes per second
  /// What a link must carry with any algorithm: algorithm_bandwidth times (n - 1) / n; all-reduce:
  /// times 2 (n - 1) / n.
  double bus_bandwidth = 0;
};

struct CollectiveReport {
  int ranks = 1;
  std::string transport;
  int calls = 1;  // between two waits
  /// Bytes per second that one rank copies in memory (on a GPU: in its own) while all ranks copy,
  /// with buffers of max_bytes: the limit of a transport through memory. Median over repetitions,
  /// mean over ranks.
  double copy_bandwidth = 0;
  std::vector<CollectiveResult> results;  // by operation, then by size
};

/// context: the device of `communicator`; its progress() is replaced during the call. Sizes are
/// rounded down to a multiple of `ranks` floats, if they are that large. Every result is checked
/// exactly, on integers; a wrong one throws Error naming operation, size and rank. Allocates two
/// buffers of max_bytes per rank. Collective.
CollectiveReport bench_collectives(Context& context, Communicator& communicator,
                                   const CollectiveBenchOptions& options = {});

}  // namespace longnet
