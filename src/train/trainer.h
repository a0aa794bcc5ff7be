// Trainer: a whole training run on this rank: data, steps, evaluation, samples, checkpoints, logs.
#pragma once

#include <functional>
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

/// Mean loss over a dataset's first `samples` sequences (0: all), each once, on all ranks. Ends
/// early when `stop`, asked after every batch and collective itself, says so on all ranks. Throws
/// NonFiniteError on every rank if the loss is no number. Collective.
LossSum evaluate_dataset(Learner& learner, const Mesh& mesh, const Config& config,
                         const Dataset& dataset, int64_t samples,
                         const std::function<bool()>& stop = nullptr);

/// Opens a dataset on rank 0 first (it may build cache files), then on the others. Collective.
std::unique_ptr<Dataset> open_dataset(Communicator& world, const Config& config, Split split);

/// Text continued from a prompt by the parameters of a byte model; token numbers of any other.
/// Ends early when `stop`, asked after every token, says so.
std::string sample_text(Context& context, const Config& config, const ParameterLayout& layout,
                        const TensorView& parameters, const std::string& prompt, int64_t tokens,
                        double temperature, int64_t top_k, uint64_t seed,
                        const std::function<bool()>& stop = nullptr);

class Trainer {
 public:
  /// world: all ranks of the job. Opens data, builds the model, resumes if told to. Collective.
  /// Throws Error on one rank and SilentError on the others (train/agreement.h).
  Trainer(const Config& config, std::unique_ptr<Communicator> world);
  ~Trainer();

  /// Trains to train.steps. Signals (train/signals.h), caught from construction to destruction and
  /// seen at the end of a step on any rank, save a checkpoint, or save and end. Collective.
  void run();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longnet
