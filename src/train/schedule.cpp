// See schedule.h.
#include "train/schedule.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace longnet {

int64_t warmup_steps_of(const OptimizerConfig& config, int64_t steps) {
  return config.warmup_steps <= steps ? config.warmup_steps : std::max<int64_t>(1, steps / 10);
}

double learning_rate_at(const OptimizerConfig& config, int64_t step, int64_t steps) {
  LN_CHECK(step >= 1, "step {}", step);
  const double peak = config.learning_rate, f = config.final_ratio;
  const int64_t warmup = warmup_steps_of(config, steps);
  if (step <= warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
  const double span = static_cast<double>(std::max<int64_t>(1, steps - warmup));
  const double t = std::min(1.0, static_cast<double>(step - warmup) / span);
  if (config.schedule == "constant") return peak;
  if (config.schedule == "linear") return peak * (1.0 - (1.0 - f) * t);
  if (config.schedule == "cosine") return peak * (f + (1.0 - f) * (1.0 + std::cos(M_PI * t)) / 2.0);
  return peak * (f + (1.0 - f) * std::pow(1.0 - t, config.power));
}

}  // namespace longnet
