// Trainer: a whole training run on this rank: data, steps, evaluation, samples, checkpoints, logs.
#pragma once

#include <functional>
#include <memory>

#include "core/config.h"
#include "data/dataset.h"
#include "dist/communicator.h"
#include "train/learner.h"

namespace longnet {

/// This rank's share [B, L] of a micro-batch: sequence b is sample samples[b] of the dataset. A
/// sample < 0 gives tokens 0 with targets -1.
MicroBatch read_micro_batch(const Dataset& dataset, const SequencePlan& plan,
                            std::span<const int64_t> samples);

/// Mean loss over a dataset's first `samples` sequences (0: all), each once, on all ranks. Ends
/// early if `stop` returns true; it is called after every batch, on all ranks, and is itself
/// collective. Throws NonFiniteError on every rank if the loss is not finite. Collective.
LossSum evaluate_dataset(Learner& learner, const Mesh& mesh, const Config& config,
                         const Dataset& dataset, int64_t samples,
                         const std::function<bool()>& stop = nullptr);

/// Opens a dataset on rank 0 first (it may build cache files), then on the others. Collective.
std::unique_ptr<Dataset> open_dataset(Communicator& world, const Config& config, Split split);

/// Continues a prompt with the parameters of a byte model, as text; with any other model, as token
/// numbers. Ends early if `stop`, called after every token, returns true.
std::string sample_text(Context& context, const Config& config, const ParameterLayout& layout,
                        const TensorView& parameters, const std::string& prompt, int64_t tokens,
                        double temperature, int64_t top_k, uint64_t seed,
                        const std::function<bool()>& stop = nullptr);

class Trainer {
 public:
  /// world: all ranks of the job. Opens the data, builds the model, resumes if configured. Throws
  /// Error on one rank and SilentError on the others (train/agreement.h). Collective.
  Trainer(const Config& config, std::unique_ptr<Communicator> world);
  ~Trainer();

  /// Trains to train.steps. Signals (train/signals.h) are caught from construction to destruction
  /// and handled at the end of a step on any rank: they save a checkpoint, or save and end.
  /// Collective.
  void run();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longnet
