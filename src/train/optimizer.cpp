// See optimizer.h.
#include "train/optimizer.h"

#include "kernels/optimizer/optimizer.h"

namespace longnet {

Optimizer::Optimizer(Context& context, const OptimizerConfig& config, const ParameterLayout& layout,
                     const TensorView& parameters, const TensorView& gradients, Arena& arena)
    : context_(context), config_(config), parameters_(parameters), gradients_(gradients) {
  first_moment_ = arena.allocate_zeroed(DType::kF32, {layout.elements()});
  second_moment_ = arena.allocate_zeroed(DType::kF32, {layout.elements()});
  // AdamW treats neighbours with equal decay as one run (padding between them is and stays zero);
  // StableAdamW clips per tensor.
  for (const ParameterInfo& info : layout.parameters()) {
    const bool joins =
        config_.name == "adamw" && !runs_.empty() && runs_.back().decays == info.is_matrix;
    if (joins)
      runs_.back().end = info.offset + info.elements;
    else
      runs_.push_back({info.offset, info.offset + info.elements, info.is_matrix});
  }
}

void Optimizer::update(int64_t step, double learning_rate, double gradient_scale) {
  for (const Run& run : runs_) {
    const auto part = [&](const TensorView& flat) {
      return flat.slice(0, run.begin, run.end - run.begin);
    };
    const AdamWOptions options{.learning_rate = learning_rate,
                               .beta1 = config_.beta1,
                               .beta2 = config_.beta2,
                               .eps = config_.eps,
                               .weight_decay = run.decays ? config_.weight_decay : 0.0,
                               .step = step,
                               .gradient_scale = gradient_scale};
    if (config_.name == "adamw")
      adamw_update(context_, part(parameters_), part(first_moment_), part(second_moment_),
                   part(gradients_), options);
    else
      stable_adamw_update(context_, part(parameters_), part(first_moment_), part(second_moment_),
                          part(gradients_), options);
  }
}

}  // namespace longnet
