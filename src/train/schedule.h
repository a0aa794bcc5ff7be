// The learning rate of a step: linear warm-up, then constant, linear, cosine or polynomial decay.
#pragma once

#include <cstdint>

#include "core/config.h"

namespace longnet {

/// Warm-up steps in a run of `steps`: warmup_steps or, if the run is shorter than that, a tenth of
/// the run (at least one step), so that the run reaches its peak and decays.
int64_t warmup_steps_of(const OptimizerConfig& config, int64_t steps);

/// step: 1 .. steps. With W = warmup_steps_of(config, steps), peak = learning_rate, f = final_ratio and
/// t = (step - W) / (steps - W) in [0, 1] after the warm-up:
///   step <= W:    peak step / W
///   constant:     peak
///   linear:       peak (1 - (1 - f) t)
///   cosine:       peak (f + (1 - f) (1 + cos(pi t)) / 2)
///   polynomial:   peak (f + (1 - f) (1 - t)^power)
double learning_rate_at(const OptimizerConfig& config, int64_t step, int64_t steps);

}  // namespace longnet
