// Runs a LongNet on one rank's share of a case and gives back loss, logits and gradients as
// vectors.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/no_exchange.h"
#include "core/safetensors.h"
#include "model/longnet.h"
#include "support/source_folder.h"

namespace longnet::test {

inline std::string golden_path(const std::string& name) {
  return source_folder() + "/tests/golden/" + name + ".safetensors";
}

/// The "case" metadata of a golden model file as a ModelConfig.
inline ModelConfig model_config(const nlohmann::json& c) {
  ModelConfig m;
  m.vocab_size = c.at("vocab_size");
  m.dim = c.at("dim");
  m.layers = c.at("layers");
  m.heads = c.at("heads");
  m.ffn_dim = c.at("ffn_dim");
  m.branches.clear();
  for (const auto& branch : c.at("branches")) m.branches.push_back({branch[0], branch[1]});
  m.causal = c.at("causal");
  m.head_offset = c.at("head_offset");
  m.position = c.at("position");
  m.xpos_scale_base = c.at("xpos_scale_base");
  m.rope_base = c.at("rope_base");
  m.norm = c.at("norm");
  m.block = c.at("block");
  m.activation = c.at("activation");
  m.qk_norm = c.at("qk_norm");
  m.bias = c.at("bias");
  m.tie_embeddings = c.at("tie_embeddings");
  m.layer_norm_eps = c.at("layer_norm_eps");
  return m;
}

/// Parameters "param.NAME" of a golden file in a flat buffer.
inline std::vector<float> golden_parameters(const SafetensorsFile& file,
                                            const ParameterLayout& layout) {
  std::vector<float> flat(layout.elements(), 0.0f);
  for (const ParameterInfo& info : layout.parameters()) {
    const std::vector<float> values = file.floats("param." + info.name);
    if (static_cast<int64_t>(values.size()) != info.elements)
      throw Error("golden {} has {} elements", info.name, values.size());
    std::copy(values.begin(), values.end(), flat.begin() + info.offset);
  }
  return flat;
}

inline TensorView flat_view(std::vector<float>& values) {
  return TensorView(values.data(), DType::kF32, {static_cast<int64_t>(values.size())});
}

/// One rank's model with memory of its own.
struct ModelOnRank {
  ModelOnRank(const ModelConfig& config, const SequencePlan& plan, int64_t batch,
              KeyValueExchange& exchange, std::vector<float> flat_parameters,
              const LongNetOptions& options = {})
      : config(config),
        batch(batch),
        local(plan.local_tokens()),
        layout(config),
        parameters(std::move(flat_parameters)),
        gradients(layout.elements(), 0.0f),
        activations("activations"),
        workspace("workspace"),
        model(context, config, plan, batch, layout, flat_view(parameters), flat_view(gradients),
              exchange, {activations, workspace}, options) {}

  /// Forward and backward; scale: 1 / targets of all ranks. Ranges must arrive front to back,
  /// whole.
  CrossEntropyResult run(std::vector<int64_t>& tokens, std::vector<int64_t>& targets,
                         double scale) {
    model.forward(TensorView(tokens.data(), DType::kI64, {batch, local}));
    logits.resize(batch * local * config.vocab_size);
    if (local > 0)
      model.logits(TensorView(logits.data(), DType::kF32, {batch * local, config.vocab_size}), 0);
    int64_t reached = 0;
    const CrossEntropyResult result =
        model.loss_and_backward(TensorView(targets.data(), DType::kI64, {batch, local}), scale,
                                [&](const ParameterRange& range) {
                                  if (range.begin != reached)
                                    throw Error("range {} after {}", range.begin, reached);
                                  reached = range.end;
                                });
    if (reached != layout.elements()) throw Error("ranges end at {}", reached);
    return result;
  }

  ModelConfig config;
  int64_t batch, local;
  Context context;
  ParameterLayout layout;
  std::vector<float> parameters, gradients;
  Arena activations, workspace;
  std::vector<float> logits;  // [B L, V]
  LongNet model;
};

/// Columns [begin, begin + length) of every row of a [B, N + 1] token table, and their successors.
inline void split_tokens(const std::vector<int64_t>& table, int64_t batch, int64_t begin,
                         int64_t length, std::vector<int64_t>& tokens,
                         std::vector<int64_t>& targets) {
  const int64_t row = static_cast<int64_t>(table.size()) / batch;
  tokens.clear();
  targets.clear();
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < length; ++i) {
      tokens.push_back(table[b * row + begin + i]);
      targets.push_back(table[b * row + begin + i + 1]);
    }
}

}  // namespace longnet::test
