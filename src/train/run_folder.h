// What stands in a run's folder: its checkpoints by step, what killed writes left, and what is set
// aside when a run goes back. Names and moves only; what a checkpoint holds is checkpoint.h's.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace longnet {

/// "step-00000500"
std::string step_name(int64_t step);
/// The step in a folder's name "step-N", or nothing.
std::optional<int64_t> step_of(const std::string& name);
/// Folder and name of a path, which may end in slashes: {"runs/x", "step-00000500"}.
std::pair<std::string, std::string> split_path(const std::string& path);

/// (step, path) of every checkpoint in a run's folder, steps rising. A folder that is not there has
/// none; one that cannot be read is an Error with its cause.
std::vector<std::pair<int64_t, std::string>> checkpoints_in(const std::string& folder);
/// The checkpoint of the highest step, or nothing. Throws Error as checkpoints_in does.
std::optional<std::string> latest_checkpoint(const std::string& folder);
/// True if a folder holds checkpoints or metrics.
bool holds_run(const std::string& folder);

/// Removes what killed writes have left behind. The caller holds the run's lock.
void remove_leftovers(const std::string& folder);
/// Removes a checkpoint; out of sight first, so that a kill leaves no half of one. A failure is a
/// warning in the log: training does not depend on it, but the disk fills.
void remove_checkpoint(const std::string& path);

/// Moves the checkpoints of steps above `last_step` and the metrics of these steps into a new
/// folder FOLDER/set-aside-N; with last_step < 0 all checkpoints and all metrics. Returns one
/// sentence that says what lies where; empty: there was no such checkpoint. Throws Error.
std::string set_aside(const std::string& folder, int64_t last_step);

}  // namespace longnet
