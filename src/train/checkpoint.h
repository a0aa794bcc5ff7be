// Checkpoints: a folder per step that holds everything a run needs to go on, on any number of
// ranks.
//
//   FOLDER/step-00000500/model.safetensors      parameters under the reference's names
//                        optimizer.safetensors  first_moment.NAME, second_moment.NAME
//                        config.yaml            the resolved configuration
//                        state.json             training_state.h; sizes and CRC-32 of the rest
// Written under a temporary name, every file and folder synced and read back, then renamed: a kill
// or an error at any moment leaves the previous checkpoint as it was. Random numbers need no state:
// they are keyed by (seed, step). One process writes and reads (rank 0); broadcasting is the
// caller's. Tensors in a GPU's memory go to and from files in pieces. Folders: run_folder.h; a save
// that may fail: checkpoint_saver.h; which checkpoint a start takes: resume.h.
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

/// The optimizer's moments where no process holds them as a whole (train/sharded_moments.h).
class MomentPieces {
 public:
  enum Which : int64_t { kFirst = 0, kSecond = 1 };
  virtual ~MomentPieces() = default;
  /// Elements [begin, begin + values.size()) of the flat layout.
  virtual void get(Which which, int64_t begin, std::span<float> values) = 0;
  virtual void set(Which which, int64_t begin, std::span<const float> values) = 0;
};

/// The flat buffers of a model in training. Moments may be not defined (evaluation).
struct TrainingTensors {
  TensorView parameters, first_moment, second_moment;
  MomentPieces* moments = nullptr;  // in place of the two views
  Context* context = nullptr;       // of the views' GPU; null: they are in host memory
};

/// A save that a second attempt cannot help: a value that is not finite, or one that cannot be
/// fetched from a GPU or another rank.
class UnsavableError : public Error {
 public:
  using Error::Error;
};

/// Writes FOLDER/step-N and returns its path; then removes the oldest beyond keep_last (0: none).
/// Throws Error with path and cause; what was there before stays usable. CRC-32 is taken from the
/// bytes as they are written, and the files are read back before the folder gets its name, so that
/// nothing older is removed for one that cannot be read. Weights whose loss is not sensible
/// (largest_sensible_loss()) take no place among the keep_last.
std::string save_checkpoint(const std::string& folder, const Config& config,
                            const ParameterLayout& layout, const TrainingTensors& tensors,
                            const TrainingState& state, int64_t keep_last);

/// A checkpoint that has been checked: files there, sizes and checksums right, format known.
struct Checkpoint {
  std::string path;
  Config config;
  TrainingState state;
  int64_t id = 0;  // checksum of the state and of all files
};
/// Throws Error saying which file is wrong and why, and names the newest earlier checkpoint that is
/// whole as the way out.
Checkpoint open_checkpoint(const std::string& path);
/// Looks at state.json only. Throws Error; no way out is looked for.
Checkpoint peek_checkpoint(const std::string& path);

/// The newest checkpoint of a run's folder below `before_step` that is whole, whose weights are
/// finite and whose loss is sensible. Reads every candidate; throws nothing.
std::optional<std::string> last_good_checkpoint(const std::string& folder, int64_t before_step);

/// Throws Error naming the first key of model.* in which the two differ.
void check_same_model(const Checkpoint& checkpoint, const ModelConfig& model);
/// Fills the tensors that are defined. Throws Error for missing, extra, misshapen or non-finite
/// ones.
void load_tensors(const Checkpoint& checkpoint, const ParameterLayout& layout,
                  const TrainingTensors& tensors);

}  // namespace longnet
