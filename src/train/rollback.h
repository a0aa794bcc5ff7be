// Going back in training: from a spike of the loss to the last good checkpoint, on all ranks.
//
// Weights, moments, step (and with it the schedule) and the losses of the last steps are the
// checkpoint's; the place in the data is not: the data since are left out. When to go back, and how
// often, is the Trainer's.
#pragma once

#include <string>

#include "core/config.h"
#include "dist/communicator.h"
#include "train/learner.h"
#include "train/training_state.h"

namespace longnet {

/// Gives rank 0's step, tokens_seen, data, rollbacks and recent_losses to all ranks. The rest of a
/// state is rank 0's alone: only checkpoints need it. Collective.
void share_state(Communicator& world, TrainingState& state);

struct WentBack {
  TrainingState state;    // to train from
  DataState place;        // in the data, at the checkpoint; rank 0
  std::string set_aside;  // one sentence, may be empty; rank 0
};

/// Loads `checkpoint` (named on rank 0) into the learner of every rank. The returned state
/// continues at `place`, with one rollback more than `now`. Checkpoints and metrics of later steps
/// are set aside in run.folder. Throws Error on all ranks (train/agreement.h) if the checkpoint
/// cannot be read; nothing on disk has changed then. Collective.
WentBack go_back(const std::string& checkpoint, const TrainingState& now, const DataState& place,
                 const Config& config, Communicator& world, Learner& learner);

}  // namespace longnet
