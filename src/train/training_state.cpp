// See training_state.h.
#include "train/training_state.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/json.h"
#include "core/text.h"
#include "train/loss_watch.h"

namespace longnet {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxCount = 1'000'000'000'000'000;  // as the configuration's counts
constexpr int64_t kMaxTotal = std::numeric_limits<int64_t>::max() / 2;
constexpr int64_t kMaxId = std::numeric_limits<uint32_t>::max();

const Json& field(const Json& json, const char* name, const std::string& where) {
  if (!json.is_object() || !json.contains(name))
    throw Error("{}: {} is missing; it is damaged or written by another program", where, name);
  return json.at(name);
}

std::string shown(const Json& value) { return one_line(json_text(value), 40); }

std::string text(const Json& json, const char* name, const std::string& where) {
  const Json& value = field(json, name, where);
  if (!value.is_string())
    throw Error("{}: {} is {}, not a text; it is damaged", where, name, shown(value));
  return value.get<std::string>();
}

double loss(const Json& value, const char* name, const std::string& where) {
  const double number = value.is_number() ? value.get<double>() : std::nan("");
  if (!std::isfinite(number) || number < 0)
    throw Error("{}: {} is {}, not a finite number of at least 0; it is damaged", where, name,
                shown(value));
  return number;
}

std::vector<double> recent_losses(const Json& list, const std::string& where) {
  if (!list.is_array() || list.size() > LossWatch::kWindow)
    throw Error("{}: recent_losses is {}, not a list of at most {} numbers; it is damaged", where,
                shown(list), LossWatch::kWindow);
  std::vector<double> losses;
  for (const Json& value : list) losses.push_back(loss(value, "one of recent_losses", where));
  return losses;
}

bool flag(const Json& json, const char* name, const std::string& where) {
  const Json& value = field(json, name, where);
  if (!value.is_boolean())
    throw Error("{}: {} is {}, not true or false; it is damaged", where, name, shown(value));
  return value.get<bool>();
}

std::vector<Origin> lineage(const Json& list, const std::string& where) {
  if (!list.is_array())
    throw Error("{}: lineage is {}, not a list; it is damaged", where, shown(list));
  std::vector<Origin> origins;
  for (const Json& entry : list) {
    Origin& origin = origins.emplace_back();
    origin.checkpoint = text(entry, "checkpoint", where);
    origin.step = whole_number(entry, "step", 0, kMaxCount, where);
    origin.id = whole_number(entry, "id", 0, kMaxId, where);
  }
  return origins;
}

}  // namespace

int64_t whole_number(const Json& json, const char* name, int64_t low, int64_t high,
                     const std::string& where) {
  const Json& value = field(json, name, where);
  // nlohmann calls 5 unsigned, -5 and 5.0 not; low is never below 0.
  const bool whole = value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t(high) &&
                     value.get<uint64_t>() >= uint64_t(low);
  if (!whole)
    throw Error("{}: {} is {}, not a whole number from {} to {}; it is damaged", where, name,
                shown(value), low, high);
  return value.get<int64_t>();
}

Json to_json(const TrainingState& state) {
  Json json{{"step", state.step},
            {"tokens_seen", state.tokens_seen},
            {"epoch", state.data.epoch},
            {"next_sample", state.data.next_sample},
            {"seed", state.seed},
            {"loss", state.loss ? Json(*state.loss) : Json()},
            {"spike", state.spike},
            {"rollbacks", state.rollbacks},
            {"recent_losses", state.recent_losses},
            {"lineage", Json::array()},
            {"training_data",
             {{"files", state.training_data.files},
              {"bytes", state.training_data.bytes},
              {"hash", state.training_data.hash}}}};
  for (const Origin& origin : state.lineage)
    json["lineage"].push_back(
        {{"checkpoint", origin.checkpoint}, {"step", origin.step}, {"id", origin.id}});
  return json;
}

TrainingState state_from_json(const Json& json, int version, const std::string& where) {
  TrainingState state;
  state.step = whole_number(json, "step", 0, kMaxCount, where);
  state.tokens_seen = whole_number(json, "tokens_seen", 0, kMaxTotal, where);
  state.data.epoch = whole_number(json, "epoch", 0, kMaxCount, where);
  state.data.next_sample = whole_number(json, "next_sample", 0, kMaxCount, where);
  if (version < 3) return state;
  state.seed = whole_number(json, "seed", 0, kMaxCount, where);
  if (const Json& value = field(json, "loss", where); !value.is_null())
    state.loss = loss(value, "loss", where);
  state.lineage = lineage(field(json, "lineage", where), where);
  const Json& data = field(json, "training_data", where);
  state.training_data.files = whole_number(data, "files", 0, kMaxCount, where);
  state.training_data.bytes = whole_number(data, "bytes", 0, kMaxTotal, where);
  state.training_data.hash = text(data, "hash", where);
  if (version < 4) return state;
  state.spike = flag(json, "spike", where);
  state.rollbacks = whole_number(json, "rollbacks", 0, kMaxCount, where);
  state.recent_losses = recent_losses(field(json, "recent_losses", where), where);
  return state;
}

double largest_sensible_loss(int64_t vocab_size) {
  return 1.5 * std::log(static_cast<double>(vocab_size)) + 1.0;
}

bool has_sensible_loss(const TrainingState& state, int64_t vocab_size) {
  return !state.spike && (!state.loss || *state.loss <= largest_sensible_loss(vocab_size));
}

}  // namespace longnet
