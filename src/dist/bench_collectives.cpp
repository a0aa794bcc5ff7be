// See bench_collectives.h.
#include "dist/bench_collectives.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>

namespace longnet {
namespace {

constexpr int kWarmUps = 2;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Sums of up to 2^16 ranks stay exact in float32: values are below 251, sums below 2^24.
float input(int rank, int64_t i) { return static_cast<float>((i * 7 + rank * 13) % 251); }

float expected_sum(int ranks, int64_t i) {
  int64_t sum = 0;
  for (int rank = 0; rank < ranks; ++rank) sum += (i * 7 + rank * 13) % 251;
  return static_cast<float>(sum);
}

/// Sorted times of the slowest rank, over repetitions. prepare() is not timed.
std::vector<double> time_all(Communicator& comm, int repetitions,
                             const std::function<void()>& prepare,
                             const std::function<void()>& run) {
  std::vector<double> seconds;
  for (int i = -kWarmUps; i < repetitions; ++i) {
    prepare();
    comm.barrier();
    const double start = now();
    run();
    double took = now() - start;
    comm.all_reduce_max({&took, 1});
    if (i >= 0) seconds.push_back(took);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

}  // namespace

CollectiveReport bench_collectives(Communicator& comm, const CollectiveBenchOptions& options) {
  if (options.min_bytes < 4 || options.max_bytes < options.min_bytes || options.growth < 2 ||
      options.repetitions < 1)
    throw Error(
        "collective benchmark from {} to {} bytes by {}, {} repetitions: sizes must be at least 4 "
        "and rise, by 2 or more, at least one repetition",
        options.min_bytes, options.max_bytes, options.growth, options.repetitions);
  const int ranks = comm.size(), rank = comm.rank();
  CollectiveReport report{ranks, comm.transport(), 0, {}};
  const int64_t most = options.max_bytes / static_cast<int64_t>(sizeof(float));
  std::vector<float> values(most), staging(most);  // [most]

  const std::vector<double> copies = time_all(
      comm, options.repetitions, [&] { values[0] += 1; },
      [&] { std::memcpy(staging.data(), values.data(), sizeof(float) * most); });
  double copied = static_cast<double>(sizeof(float) * most) / copies[copies.size() / 2];
  comm.all_reduce_sum(std::span(&copied, 1));
  report.copy_bandwidth = copied / ranks;

  for (const std::string operation : {"all_gather", "reduce_scatter", "all_reduce"}) {
    const bool gather = operation == "all_gather";
    for (int64_t bytes = options.min_bytes; bytes <= options.max_bytes; bytes *= options.growth) {
      const int64_t n = bytes / static_cast<int64_t>(sizeof(float));
      std::vector<int64_t> begin, begin_bytes;  // [ranks + 1]
      for (int member = 0; member <= ranks; ++member) {
        begin.push_back(block_begin(n, ranks, member));
        begin_bytes.push_back(begin.back() * static_cast<int64_t>(sizeof(float)));
      }
      const auto prepare = [&] {
        for (int64_t i = 0; i < n; ++i) values[i] = input(rank, i);
      };
      const auto run = [&] {
        if (gather) {
          comm.wait(comm.start_all_gather(values.data(), begin_bytes));
        } else if (operation == "all_reduce") {
          comm.wait(comm.start_all_reduce_sum(values.data(), n));
        } else {
          comm.wait(comm.start_reduce_scatter(values.data(), begin, staging.data()));
        }
      };
      const std::vector<double> seconds = time_all(comm, options.repetitions, prepare, run);
      // The values of the last repetition.
      for (int member = 0; member < ranks; ++member) {
        if (operation == "reduce_scatter" && member != rank) continue;
        for (int64_t i = begin[member]; i < begin[member + 1]; ++i) {
          const float expected = gather ? input(member, i) : expected_sum(ranks, i);
          if (values[i] != expected)
            throw Error("{} of {} bytes gave {} instead of {} at element {} on rank {} of {}",
                        operation, bytes, values[i], expected, i, rank, ranks);
        }
      }
      CollectiveResult result;
      result.operation = operation;
      result.bytes = bytes;
      result.seconds = seconds[seconds.size() / 2];
      result.fastest_seconds = seconds.front();
      result.slowest_seconds = seconds.back();
      result.algorithm_bandwidth = static_cast<double>(bytes) / result.seconds;
      result.bus_bandwidth = result.algorithm_bandwidth *
                             ((operation == "all_reduce" ? 2.0 : 1.0) * (ranks - 1) / ranks);
      report.results.push_back(result);
    }
  }
  return report;
}

}  // namespace longnet
