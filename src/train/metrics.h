// Reports of a step: a log line or a progress display for people, a JSON line for programs.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "core/appended_file.h"
#include "core/config.h"
#include "core/context.h"

namespace longnet {

/// One optimizer step, over all ranks.
struct StepMetrics {
  int64_t step = 0, steps = 0;
  double loss = 0;            // nats per token
  double bits_per_byte = -1;  // negative: unknown
  double gradient_norm = 0;
  double learning_rate = 0;
  double seconds = 0;
  double tokens_per_second = 0;
  double share_of_peak = 0;     // FLOP/s of the step / measured matmul FLOP/s of all ranks
  int64_t exchanged_bytes = 0;  // keys, values and their gradients, sent by all ranks in this step
  int64_t needed_bytes = 0;     // of the forward's part, what a causal query uses
  int64_t gradient_bytes = 0;   // parameter gradients, likewise
  int64_t parameter_bytes = 0;  // updated parameters (parallel.shard_optimizer), likewise
  int64_t memory_bytes = 0;     // of the rank that has most: memory_in_use()
};

/// A loss that jumped, and what was done (train.on_spike).
struct Spike {
  int64_t step = 0;       // whose loss it is
  double loss = 0;        // nats
  double limit = 0;       // nats, LossWatch::limit() before it
  std::string action{};   // warn, stop or rollback
  int64_t went_back = 0;  // rollback: the step that training continues from, and:
  std::string checkpoint{};
  int64_t skipped = 0;    // sequences that are left out, those of the steps done since included
  int64_t rollbacks = 0;  // to this checkpoint so far
};

/// nats per token -> bits per byte; negative where bytes per token are unknown (0).
double bits_per_byte(double nats, double bytes_per_token);
/// "1.5 MB", three digits, powers of 1000.
std::string bytes_text(int64_t bytes);
/// Memory used by a rank, bytes: on the CPU the resident memory of this process; on a GPU the
/// memory in use on that GPU, by this process and others.
int64_t memory_in_use(const Context& context);
/// Largest resident memory of this process so far, bytes.
int64_t peak_resident_bytes();

/// How far a run is: what of its metrics is to be kept.
struct RunPlace {
  int64_t step = 0;       // steps done
  int64_t rollbacks = 0;  // to the checkpoint of this step
};

/// Whether a signal ended the run in the evaluation after this step: FOLDER/metrics.jsonl has the
/// step, but no evaluation of it.
bool lacks_evaluation(const RunConfig& run, int64_t step);

/// Rank 0's reporter. On a terminal it rewrites one line per step, otherwise it logs lines; log.txt
/// has the step's line in both cases. Lines of metrics.jsonl that cannot be written (a full disk)
/// are counted, with one warning, and do not stop training.
class MetricsLog {
 public:
  /// Opens FOLDER/metrics.jsonl for appending and drops lines of later steps and rollbacks (left by
  /// a run that had progressed beyond its checkpoint). If the file cannot be read or written, throws
  /// Error and leaves it as it is.
  MetricsLog(const RunConfig& run, const RunPlace& place);
  ~MetricsLog();

  void step(const StepMetrics& metrics);
  void evaluation(int64_t step, const std::string& split, double loss, double bits_per_byte,
                  int64_t tokens);
  void sample(int64_t step, const std::string& text);
  /// Writes to the file only; the log has a line of its own.
  void spike(const Spike& spike);
  /// Ends the rewritten line, so that the next log line stands alone.
  void finish_line();

 private:
  /// Writes one line: the object with the time of day.
  void write(nlohmann::ordered_json json);
  void show(const std::string& line, int64_t step, int64_t steps);

  RunConfig run_;
  bool display_ = false;
  bool line_open_ = false;
  AppendedFile file_;
};

}  // namespace longnet
