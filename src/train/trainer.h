// Trainer: a whole training run on this rank: data, steps, evaluation, samples, checkpoints, logs.
#pragma once

#include <memory>

#include "core/config.h"
#include "data/dataset.h"
#include "dist/communicator.h"
#include "train/learner.h"

namespace longnet {

/// Fills this rank's share [B, L] of the micro-batch whose first sequence is `sample` of the given
/// places; a place < 0 gives tokens 0 with targets -1.
MicroBatch read_micro_batch(const Dataset& dataset, const SequencePlan& plan,
                            std::span<const int64_t> samples);

/// Mean loss over a dataset's first `samples` sequences (0: all), each once, on all ranks.
/// Collective.
LossSum evaluate_dataset(Learner& learner, const Mesh& mesh, const Config& config,
                         const Dataset& dataset, int64_t samples);

/// Opens a dataset on rank 0 first (it may build cache files), then on the others. Collective.
std::unique_ptr<Dataset> open_dataset(Communicator& world, const Config& config, Split split);

/// Text continued from a prompt by the parameters of a byte model; token numbers of any other.
std::string sample_text(Context& context, const Config& config, const ParameterLayout& layout,
                        const TensorView& parameters, const std::string& prompt, int64_t tokens,
                        double temperature, int64_t top_k, uint64_t seed);

class Trainer {
 public:
  /// world: all ranks of the job. Opens data, builds the model, resumes if told to. Collective.
  /// Throws Error on one rank and SilentError on the others (train/agreement.h).
  Trainer(const Config& config, std::unique_ptr<Communicator> world);
  ~Trainer();

  /// Trains to train.steps. Signals, caught from construction to destruction and seen at the end
  /// of a step on any rank: SIGUSR1 saves a checkpoint and goes on, SIGTERM saves and ends.
  /// Collective.
  void run();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longnet
