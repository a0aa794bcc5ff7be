// CheckpointSaver: saves during training, on all ranks together, and handles a failed save: one
// more attempt, then either a counted warning (checkpoint.on_failure: continue; training continues
// until the next save is due) or an error. It never leaves a half-written folder.
#pragma once

#include <string>

#include "core/config.h"
#include "dist/communicator.h"
#include "train/checkpoint.h"
#include "train/learner.h"

namespace longnet {

class CheckpointSaver {
 public:
  /// good: path of the checkpoint that the run starts from; empty: none. All arguments must outlive
  /// this.
  CheckpointSaver(const Config& config, Communicator& world, Learner& learner,
                  const std::string& good);

  /// Saves `state` and logs it; tells the learner which checkpoint to name from now on. must: the
  /// run ends after this save, so a failure is an Error. Returns whether the state is saved. Throws
  /// Error on all ranks (train/agreement.h) if the weights or the loss of the state are not finite,
  /// or as above; the message names the last good checkpoint. Collective.
  bool save(const TrainingState& state, bool must);

  /// The run's folder was deleted: there is no good checkpoint any longer.
  void forget() { use(""); }
  /// The last checkpoint saved with a sensible loss; empty: none. Known on rank 0 from the start, on
  /// the others from the first save on.
  const std::string& last_good() const { return good_; }
  int64_t failures() const { return failures_; }

 private:
  void use(const std::string& good);
  bool save_on_root(const TrainingTensors& tensors, const TrainingState& state, bool must);
  std::string last_good_text() const;

  const Config& config_;
  Communicator& world_;
  Learner& learner_;
  std::string good_;
  int64_t failures_ = 0;  // on rank 0
};

}  // namespace longnet
