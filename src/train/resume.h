// Resuming: which checkpoint a start continues from, and what has changed since it was saved.
//
// checkpoint.resume  none: a new run; a folder that holds one is refused, or set aside.
//                    auto: the highest step in run.folder. Going back sets later steps aside, so
//                          that is always the newest branch.
//                    path: goes back to that checkpoint, or starts from another run's. The states
//                          that follow remember it (Origin), so that the same command given again
//                          continues what it began, even if keep_last has removed the checkpoint.
// Rank 0 works here; nothing is changed on disk before the checkpoint has been read.
#pragma once

#include <optional>
#include <string>

#include "core/config.h"
#include "data/dataset.h"
#include "train/checkpoint.h"

namespace longnet {

/// What a start does.
struct ResumePlan {
  std::optional<Checkpoint> checkpoint;  // to continue from; nothing: from step 0
  std::optional<Origin> branch;          // the checkpoint begins a branch: how states name it
  bool anew = false;                     // all that the folder holds is set aside
  bool complete = false;                 // the checkpoint has all steps: nothing is left to do
};

/// Decides from the configuration and the checkpoints; reads the chosen one whole. Throws Error: no
/// such checkpoint, a damaged one, one of another model, one past train.steps, a folder that holds
/// another run.
ResumePlan plan_resume(const Config& config);

/// The checkpoint to name while this run has saved none: the one it continues from, or an earlier
/// one if the loss of that is not sensible; empty: none. Rank 0.
std::string good_start(const ResumePlan& plan, const Config& config);

/// "already complete at step N ...", with the ways to continue.
std::string complete_text(const ResumePlan& plan, const Config& config);

/// Does what `plan` says: reads the tensors, sets aside what is left behind, and logs each setting
/// that has changed. Returns the state to train from, whose data place is anew where the data or
/// their order changed. Throws Error before any change if the data have other content and
/// checkpoint.accept_new_data is not set.
TrainingState carry_out_resume(const ResumePlan& plan, const Config& config,
                               const ParameterLayout& layout, const TrainingTensors& tensors,
                               const Dataset& data);

}  // namespace longnet
