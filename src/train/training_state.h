// TrainingState: what changes from step to step besides the tensors, and its form in state.json.
//
// Every field has its own type and range; a state that violates one is refused as damaged, even if
// its checksum is correct. Files and folders are checkpoint.h's.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/dataset.h"

namespace longnet {

/// A checkpoint that a user named in checkpoint.resume and from which a branch of the run started.
struct Origin {
  std::string checkpoint;  // folder's name if it stood in run.folder, else its whole path
  int64_t step = 0;
  int64_t id = 0;  // state_id() of it
  bool operator==(const Origin&) const = default;
};

struct TrainingState {
  int64_t step = 0;         // optimizer steps done
  int64_t tokens_seen = 0;  // over all ranks
  DataState data;
  int64_t seed = -1;             // train.seed; -1: not stated (formats 1 and 2)
  std::optional<double> loss{};  // nats, of these weights on the data of the step that came next
  bool spike = false;            // that loss stood out from those of the steps before it
  int64_t rollbacks = 0;         // to this checkpoint, since training last reached a good one
  std::vector<double> recent_losses{};  // nats, of the last steps (LossWatch)
  DataFingerprint training_data{};      // no hash: not stated
  std::vector<Origin> lineage{};        // every step back, in order; the last one is this branch's
  bool operator==(const TrainingState&) const = default;
};

/// 3 had no spike, rollbacks, recent_losses; 2 no seed, loss, data, lineage; 1 no checksum either.
constexpr int kStateVersion = 4;

/// The fields of state.json that hold the state.
nlohmann::json to_json(const TrainingState& state);
/// Reads the state from these fields. Throws Error naming the field, its value and the allowed
/// values; `where` begins the message. version: format_version of the file.
TrainingState state_from_json(const nlohmann::json& json, int version, const std::string& where);
/// Reads a whole number in [low, high] from a field of `json`; throws Error as above.
int64_t whole_number(const nlohmann::json& json, const char* field, int64_t low, int64_t high,
                     const std::string& where);

/// Largest sensible loss of weights, in nats: 1.5 times the loss of guessing among vocab_size
/// tokens, plus one. A newly initialised model lies well below.
double largest_sensible_loss(int64_t vocab_size);
/// False for weights with a larger loss or a spike; true if no loss is recorded.
bool has_sensible_loss(const TrainingState& state, int64_t vocab_size);

}  // namespace longnet
