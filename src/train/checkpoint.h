// Checkpoints: a folder per step that holds everything a run needs to go on, on any number of
// ranks.
//
//   FOLDER/step-00000500/model.safetensors      parameters under the reference's names
//                        optimizer.safetensors  first_moment.NAME, second_moment.NAME
//                        config.yaml            the resolved configuration
//                        state.json             step, data position, seed; sizes and CRC-32 of the
//                        rest
// Written under a temporary name, every file and folder synced, then renamed: a kill at any moment
// leaves the previous checkpoint as it was. Random numbers need no state: they are keyed by (seed,
// step). One process writes and reads (rank 0); broadcasting is the caller's. Tensors in a GPU's
// memory go to and from files in pieces.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "core/config.h"
#include "core/context.h"
#include "core/tensor.h"
#include "data/dataset.h"
#include "model/parameters.h"

namespace longnet {

/// What changes from step to step beside the tensors.
struct TrainingState {
  int64_t step = 0;         // optimizer steps done
  int64_t tokens_seen = 0;  // over all ranks
  DataState data;
  bool operator==(const TrainingState&) const = default;
};

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

/// Writes FOLDER/step-N and returns its path; then removes the oldest beyond keep_last (0: none).
/// Throws Error with path and cause; what was there before stays usable.
std::string save_checkpoint(const std::string& folder, const Config& config,
                            const ParameterLayout& layout, const TrainingTensors& tensors,
                            const TrainingState& state, int64_t keep_last);

/// The checkpoint of the highest step in a run's folder, or nothing.
std::optional<std::string> latest_checkpoint(const std::string& folder);
/// Removes what killed writes have left behind.
void remove_leftovers(const std::string& folder);

/// A checkpoint that has been checked: files there, sizes and checksums right, format known.
struct Checkpoint {
  std::string path;
  Config config;
  TrainingState state;
};
/// Throws Error saying which file is wrong and why, and names the previous checkpoint as the way
/// out.
Checkpoint open_checkpoint(const std::string& path);

/// Throws Error naming the first key of model.* in which the two differ.
void check_same_model(const Checkpoint& checkpoint, const ModelConfig& model);
/// Fills the tensors that are defined. Throws Error for missing, extra, misshapen or non-finite
/// ones.
void load_tensors(const Checkpoint& checkpoint, const ParameterLayout& layout,
                  const TrainingTensors& tensors);

}  // namespace longnet
