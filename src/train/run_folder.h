// The content of a run's folder: checkpoints by step, leftovers of killed writes, and what is set
// aside when a run goes back. Names and moves only; checkpoint.h reads and writes checkpoints.
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

/// (step, path) of every checkpoint in a run's folder, steps rising. A missing folder has none; an
/// unreadable folder is an Error with its cause.
std::vector<std::pair<int64_t, std::string>> checkpoints_in(const std::string& folder);
/// The checkpoint of the highest step, or nothing. Throws Error as checkpoints_in does.
std::optional<std::string> latest_checkpoint(const std::string& folder);
/// True if both paths lead to the same folder, and it is there.
bool same_folder(const std::string& a, const std::string& b);
/// True if a folder holds checkpoints or metrics.
bool holds_run(const std::string& folder);

/// The run's metrics.jsonl; empty if there is none. Throws Error if it cannot be read.
std::string read_metrics(const std::string& path);

/// A checkpoint that is being written anew, between two renames, where the file system cannot swap.
inline constexpr const char* kReplacedPrefix = ".replaced-";

/// Removes the leftovers of killed writes, and puts back a checkpoint whose replacement was not
/// finished. The caller holds the run's lock.
void remove_leftovers(const std::string& folder);
/// Removes a checkpoint; renames it first, so that a kill leaves no partial checkpoint. A failure
/// is only a warning in the log: training does not depend on it, but the disk fills.
void remove_checkpoint(const std::string& path);

enum class Aside {
  kWithCheckpoints,  // metrics only where there are checkpoints to set aside, or all goes
  kMetricsAlone,     // metrics in any case
};

/// Moves the checkpoints of steps above `last_step` and the metrics of these steps into a new
/// folder FOLDER/set-aside-N; with last_step < 0 all checkpoints and all metrics. Returns one
/// sentence that says where things are; empty: there was nothing to move. Throws Error.
std::string set_aside(const std::string& folder, int64_t last_step,
                      Aside what = Aside::kWithCheckpoints);

}  // namespace longnet
