// Optimizer: AdamW or StableAdamW over a model's flat buffers. Decay applies to matrices only.
//
// It owns the two moments (flat, same layout as the parameters). What a range's update does is
// kernels/optimizer; which ranges there are is decided here.
#pragma once

#include <cstdint>
#include <vector>

#include "core/arena.h"
#include "core/config.h"
#include "core/context.h"
#include "model/parameters.h"

namespace longnet {

class Optimizer {
 public:
  /// arena: the moments are taken from it, zero. parameters, gradients: flat, must outlive this.
  Optimizer(Context& context, const OptimizerConfig& config, const ParameterLayout& layout,
            const TensorView& parameters, const TensorView& gradients, Arena& arena);

  /// One update with the gradients as they are times gradient_scale. step: from 1.
  void update(int64_t step, double learning_rate, double gradient_scale);

  const TensorView& first_moment() const { return first_moment_; }
  const TensorView& second_moment() const { return second_moment_; }

 private:
  struct Run {  // elements with the same decay
    int64_t begin, end;
    bool decays;
  };

  Context& context_;
  OptimizerConfig config_;
  TensorView parameters_, gradients_, first_moment_, second_moment_;
  std::vector<Run> runs_;
};

}  // namespace longnet
