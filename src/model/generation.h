// Incremental generation: one token at a time, with only the keys and values that dilated attention
// can still see: per layer, branch and head, the kept rows of the current segment.
//
// The prompt runs through the parallel forward once (prefill), and its keys and values fill the
// cache. One sequence, one rank; causal models only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/config.h"
#include "core/context.h"
#include "model/parameters.h"

namespace longnet {

struct SamplingOptions {
  double temperature = 1.0;  // 0: the most likely token
  int64_t top_k = 0;         // 0: all tokens
  uint64_t seed = 1;
};

class Generator {
 public:
  /// parameters: flat buffer with the layout of config; must outlive this. Throws Error for a model
  /// that is not causal.
  Generator(Context& context, const ModelConfig& config, const ParameterLayout& layout,
            const TensorView& parameters);
  ~Generator();

  /// Resets the state and reads the prompt (at least one token, each in [0, V)); returns the logits
  /// [V] of the token after it.
  std::vector<float> prefill(std::span<const int64_t> prompt);
  /// Appends one token; returns the logits [V] of the next.
  std::vector<float> step(int64_t token);

  int64_t tokens() const;       // read so far
  int64_t cache_bytes() const;  // keys and values held

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Draws a token from logits [V]; draw: counter of the random number (a token's index).
int64_t sample_token(std::span<const float> logits, const SamplingOptions& options, uint64_t draw);

}  // namespace longnet
