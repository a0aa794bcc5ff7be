// A Learner on a small configuration, driven with given tokens.
#pragma once

#include <memory>
#include <vector>

#include "dist/mesh.h"
#include "support/model_case.h"
#include "train/learner.h"

namespace longnet::test {

/// The configuration of a golden training file; sequence_length and batch_size from its tokens.
inline Config training_config(const SafetensorsFile& file) {
  const nlohmann::json json = nlohmann::json::parse(file.metadata().at("case"));
  Config config;
  config.model = model_config(json);
  const nlohmann::json& optimizer = json.at("optimizer");
  config.optimizer.learning_rate = optimizer.at("lr");
  config.optimizer.beta1 = optimizer.at("betas")[0];
  config.optimizer.beta2 = optimizer.at("betas")[1];
  config.optimizer.eps = optimizer.at("eps");
  config.optimizer.weight_decay = optimizer.at("weight_decay");
  config.optimizer.clip_norm = optimizer.at("clip_norm");
  config.optimizer.schedule = "constant";
  config.optimizer.warmup_steps = 0;
  const std::vector<int64_t>& shape = file.entry("tokens").shape;  // [S, B, N + 1]
  config.train.steps = shape[0];
  config.train.batch_size = shape[1];
  config.train.sequence_length = shape[2] - 1;
  return config;
}

/// Rows [first, first + count) of step `step` of tokens [S, B, N + 1], this rank's part.
inline MicroBatch golden_batch(const std::vector<int64_t>& tokens,
                               const std::vector<int64_t>& shape, int64_t step, int64_t first,
                               int64_t count, const SequencePlan& plan) {
  const int64_t row = shape[2], begin = (step * shape[1] + first) * row;
  MicroBatch batch;
  split_tokens({tokens.begin() + begin, tokens.begin() + begin + count * row}, count,
               plan.local_begin(), plan.local_tokens(), batch.tokens, batch.targets);
  return batch;
}

inline void set_parameters(Learner& learner, const SafetensorsFile& file) {
  const std::vector<float> flat = golden_parameters(file, learner.layout());
  std::copy(flat.begin(), flat.end(), learner.parameters().f32());
  learner.parameters_changed();
}

}  // namespace longnet::test
