// Checkpoints: one folder per step, with everything that a run needs to continue on any number of
// ranks.
//
//   FOLDER/step-00000500/model.safetensors      parameters under the reference's names
//                        optimizer.safetensors  first_moment.NAME, second_moment.NAME
//                        config.yaml            the resolved configuration
//                        state.json             training_state.h; sizes and CRC-32 of the rest
// A checkpoint is written under a temporary name; every file and folder is synced and read back;
// then it is renamed. A kill or an error at any moment leaves the previous checkpoint as it was.
// Random numbers need no state: they are keyed by (seed, step). One process (rank 0) writes and
// reads; broadcasting is the caller's task. Tensors in GPU memory go to and from files in pieces.
// Folders: run_folder.h; a save that may fail: checkpoint_saver.h; choice of the checkpoint at the
// start: resume.h.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "core/config.h"
#include "core/context.h"
#include "core/error.h"
#include "core/tensor.h"
#include "model/parameters.h"
#include "train/run_folder.h"
#include "train/training_state.h"

namespace longnet {

/// The optimizer's moments when no process holds all of them (train/sharded_moments.h).
class MomentPieces {
 public:
  enum Which : int64_t { kFirst = 0, kSecond = 1 };
  virtual ~MomentPieces() = default;
  /// Elements [begin, begin + values.size()) of the flat layout.
  virtual void get(Which which, int64_t begin, std::span<float> values) = 0;
  virtual void set(Which which, int64_t begin, std::span<const float> values) = 0;
};

/// The flat buffers of a model in training. Moments may be undefined (evaluation).
struct TrainingTensors {
  TensorView parameters, first_moment, second_moment;
  MomentPieces* moments = nullptr;  // in place of the two views
  Context* context = nullptr;       // of the views' GPU; null: they are in host memory
};

/// A save that a second attempt cannot help: a value is not finite, or cannot be fetched from a GPU
/// or another rank.
class UnsavableError : public Error {
 public:
  using Error::Error;
};

/// Writes FOLDER/step-N and returns its path; then removes the oldest checkpoints beyond keep_last
/// (0: none). Throws Error with path and cause; earlier checkpoints stay usable. CRC-32 is computed
/// from the bytes as they are written, and the files are read back before the folder gets its name,
/// so nothing older is removed for a checkpoint that cannot be read. Weights whose loss is not
/// sensible (largest_sensible_loss()) do not count towards keep_last.
std::string save_checkpoint(const std::string& folder, const Config& config,
                            const ParameterLayout& layout, const TrainingTensors& tensors,
                            const TrainingState& state, int64_t keep_last);

/// A verified checkpoint: all files exist, sizes and checksums match, the format is known.
struct Checkpoint {
  std::string path;
  Config config;
  TrainingState state;
  int64_t id = 0;  // checksum of the state and of all files
};
/// Throws Error naming the bad file and the fault; suggests the newest earlier intact checkpoint.
Checkpoint open_checkpoint(const std::string& path);
/// Reads state.json only. Throws Error, without a search for another checkpoint.
Checkpoint peek_checkpoint(const std::string& path);

/// The newest intact checkpoint of a run's folder below `before_step` whose weights are finite and
/// whose loss is sensible. Reads every candidate; does not throw.
std::optional<std::string> last_good_checkpoint(const std::string& folder, int64_t before_step);

/// Throws Error naming the first key of model.* that differs.
void check_same_model(const Checkpoint& checkpoint, const ModelConfig& model);
/// Fills the tensors that are defined. Throws Error for missing, extra, misshapen or non-finite
/// ones.
void load_tensors(const Checkpoint& checkpoint, const ParameterLayout& layout,
                  const TrainingTensors& tensors);

}  // namespace longnet
