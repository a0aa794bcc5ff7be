// TrainingState: what changes from step to step beside the tensors, and its form in state.json.
//
// Every field has a type and a range of its own; a state that breaks one is refused as damaged,
// even under a right checksum. Files and folders are checkpoint.h's.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/dataset.h"

namespace longnet {

/// A checkpoint that somebody named in checkpoint.resume, at which a branch of the run began.
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
  int64_t seed = -1;                // train.seed; -1: not stated (formats 1 and 2)
  std::optional<double> loss{};     // nats, of these weights on the tokens that come next
  DataFingerprint training_data{};  // no hash: not stated
  std::vector<Origin> lineage{};    // in the order of the steps back; the last is this branch's
  bool operator==(const TrainingState&) const = default;
};

constexpr int kStateVersion = 3;  // 2 had no seed, loss, data, lineage; 1 no checksum either

/// The fields of state.json that hold the state.
nlohmann::json to_json(const TrainingState& state);
/// Reads them back. Throws Error naming the field, what it holds and what is allowed; `where`
/// begins the message. version: format_version of the file.
TrainingState state_from_json(const nlohmann::json& json, int version, const std::string& where);
/// A whole number in [low, high] of a field of `json`; throws Error as above.
int64_t whole_number(const nlohmann::json& json, const char* field, int64_t low, int64_t high,
                     const std::string& where);

/// Largest loss, in nats, that weights worth keeping have: half as much again as guessing among
/// vocab_size tokens, and one more. A model that has just been initialised lies well below.
double largest_sensible_loss(int64_t vocab_size);
/// False for weights whose loss is above that; true where no loss is stated.
bool has_sensible_loss(const TrainingState& state, int64_t vocab_size);

}  // namespace longnet
