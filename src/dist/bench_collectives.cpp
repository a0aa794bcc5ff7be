// See bench_collectives.h.
#include "dist/bench_collectives.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "core/arena.h"
#include "core/clock.h"
#include "core/device_runtime.h"

namespace longnet {
namespace {

constexpr int kWarmUps = 2;

/// Sums of up to 2^16 ranks stay exact in float32: values are below 251, sums below 2^24.
float input(int rank, int64_t i) { return static_cast<float>((i * 7 + rank * 13) % 251); }

float expected_sum(int ranks, int64_t i) {
  int64_t sum = 0;
  for (int rank = 0; rank < ranks; ++rank) sum += (i * 7 + rank * 13) % 251;
  return static_cast<float>(sum);
}

/// Two buffers of n floats where the context works.
class Buffers {
 public:
  Buffers(Context& context, int64_t n)
      : context_(context),
        arena_("collective benchmark", false, context.device()),
        values_(arena_.allocate_zeroed(DType::kF32, {n})),
        staging_(arena_.allocate_zeroed(DType::kF32, {n})),
        host_(context.on_gpu() ? n : 0) {}

  float* values() const { return static_cast<float*>(values_.data); }
  float* staging() const { return static_cast<float*>(staging_.data); }

  /// The first n values become value(i).
  template <typename Value>
  void set(int64_t n, const Value& value) {
    float* to = context_.on_gpu() ? host_.data() : values();
    for (int64_t i = 0; i < n; ++i) to[i] = value(i);
    if (!context_.on_gpu()) return;
    device_runtime::copy_to_device(values(), to, n * kWidth, context_.stream());
    context_.wait();
  }
  /// The first n values, on the host.
  const float* get(int64_t n) {
    if (!context_.on_gpu()) return values();
    context_.wait();  // while others may fail: the copy would not hear of it
    device_runtime::copy_to_host(host_.data(), values(), n * kWidth, context_.stream());
    context_.wait();
    return host_.data();
  }
  void copy(int64_t n) {
    if (context_.on_gpu())
      device_runtime::copy_on_device(staging(), values(), n * kWidth, context_.stream());
    else
      std::memcpy(staging(), values(), static_cast<size_t>(n * kWidth));
  }

 private:
  static constexpr int64_t kWidth = sizeof(float);
  Context& context_;
  Arena arena_;
  TensorView values_, staging_;  // [n]
  std::vector<float> host_;      // [n] with a GPU
};

/// While it lives, waiting for the GPU looks after the communicator.
class Progress {
 public:
  Progress(Context& context, Communicator& comm) : context_(context) {
    context.set_progress([&comm] { comm.progress(); });
  }
  ~Progress() { context_.set_progress({}); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

 private:
  Context& context_;
};

/// Sorted times of one run() for the slowest rank, over repetitions of `calls` runs. prepare() is
/// not timed.
std::vector<double> time_all(Context& context, Communicator& comm, int repetitions, int calls,
                             const std::function<void()>& prepare,
                             const std::function<void()>& run) {
  std::vector<double> seconds;
  for (int i = -kWarmUps; i < repetitions; ++i) {
    prepare();
    context.wait();
    comm.barrier();
    const double start = seconds_now();
    for (int call = 0; call < calls; ++call) run();
    context.wait();
    double took = (seconds_now() - start) / calls;
    comm.all_reduce_max({&took, 1});
    if (i >= 0) seconds.push_back(took);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

}  // namespace

CollectiveReport bench_collectives(Context& context, Communicator& comm,
                                   const CollectiveBenchOptions& options) {
  if (options.min_bytes < 4 || options.max_bytes < options.min_bytes || options.growth < 2 ||
      options.repetitions < 1 || options.calls < 0)
    throw Error(
        "collective benchmark from {} to {} bytes by {}, {} repetitions: sizes must be at least 4 "
        "and rise, by 2 or more, at least one repetition",
        options.min_bytes, options.max_bytes, options.growth, options.repetitions);
  const int ranks = comm.size(), rank = comm.rank();
  const int calls = options.calls > 0 ? options.calls : context.on_gpu() ? 20 : 1;
  CollectiveReport report{ranks, comm.transport(), calls, 0, {}};
  const int64_t most = options.max_bytes / static_cast<int64_t>(sizeof(float));
  Buffers buffers(context, most);
  const Progress progress(context, comm);

  const std::vector<double> copies =
      time_all(context, comm, options.repetitions, calls, [] {}, [&] { buffers.copy(most); });
  double copied = static_cast<double>(sizeof(float) * most) / copies[copies.size() / 2];
  comm.all_reduce_sum(std::span(&copied, 1));
  report.copy_bandwidth = copied / ranks;

  for (const std::string operation : {"all_gather", "reduce_scatter", "all_reduce"}) {
    const bool gather = operation == "all_gather";
    for (int64_t size = options.min_bytes; size <= options.max_bytes; size *= options.growth) {
      int64_t n = size / static_cast<int64_t>(sizeof(float));
      if (n >= ranks) n = n / ranks * ranks;
      const int64_t bytes = n * static_cast<int64_t>(sizeof(float));
      std::vector<int64_t> begin, begin_bytes;  // [ranks + 1]
      for (int member = 0; member <= ranks; ++member) {
        begin.push_back(block_begin(n, ranks, member));
        begin_bytes.push_back(begin.back() * static_cast<int64_t>(sizeof(float)));
      }
      const auto prepare = [&] { buffers.set(n, [&](int64_t i) { return input(rank, i); }); };
      const auto run = [&] {
        if (gather) {
          comm.wait(comm.start_all_gather(buffers.values(), begin_bytes));
        } else if (operation == "all_reduce") {
          comm.wait(comm.start_all_reduce_sum(buffers.values(), n));
        } else {
          comm.wait(comm.start_reduce_scatter(buffers.values(), begin, buffers.staging()));
        }
      };
      const std::vector<double> seconds =
          time_all(context, comm, options.repetitions, calls, prepare, run);
      if (calls > 1) {  // sums of sums are not what is checked
        prepare();
        run();
      }
      const float* values = buffers.get(n);
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
