// Resuming: which checkpoint a run continues from, and what has changed since it was saved.
//
// checkpoint.resume  none: a new run; a folder that holds one is refused, or set aside.
//                    auto: the highest step in run.folder. Going back sets later steps aside, so
//                          that is always the newest branch.
//                    path: goes back to that checkpoint, or starts from another run's. The states
//                          that follow remember it (Origin), so that the same command given again,
//                          as a requeue does, continues what it began.
// Rank 0 works here; nothing is changed on disk before the checkpoint has been read.
#pragma once

#include <optional>
#include <string>

#include "core/config.h"
#include "data/dataset.h"
#include "train/checkpoint.h"

namespace longnet {

/// What a start of the program does.
struct ResumePlan {
  std::optional<Checkpoint> checkpoint;  // to continue from; nothing: from step 0
  std::optional<Origin> branch;          // the checkpoint begins a branch: how states name it
  bool anew = false;                     // everything in the folder is set aside
  bool complete = false;                 // the checkpoint has all steps; nothing remains to do
};

/// Decides from the configuration and the checkpoints; reads the whole chosen checkpoint. Throws
/// Error: no such checkpoint, a damaged one, one of another model, one past train.steps, a folder
/// that holds another run.
ResumePlan plan_resume(const Config& config);

/// The checkpoint to name until this run has saved one: the checkpoint it continues from, or an
/// earlier one if the loss of that is not sensible. Empty: none. Rank 0.
std::string good_start(const ResumePlan& plan, const Config& config);

/// "already complete at step N ...", with the ways to continue.
std::string complete_text(const ResumePlan& plan, const Config& config);

/// Carries out `plan`: reads the tensors, sets aside what is left behind, and logs each setting
/// that has changed. Returns the state to train from; its data position starts anew if the data or
/// their order changed. Throws Error, before any change, if the data have other content and
/// checkpoint.accept_new_data is not set.
TrainingState carry_out_resume(const ResumePlan& plan, const Config& config,
                               const ParameterLayout& layout, const TrainingTensors& tensors,
                               const Dataset& data);

}  // namespace longnet
