// See loss_watch.h. Medians, because one spike must not hide the next.
#include "train/loss_watch.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace longnet {
namespace {

double median_of(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

LossWatch::LossWatch(int64_t vocab_size) : guess_(std::log(static_cast<double>(vocab_size))) {}

std::optional<double> LossWatch::median() const {
  if (losses_.empty()) return std::nullopt;
  return median_of({losses_.begin(), losses_.end()});
}

double LossWatch::limit() const {
  const double middle = median().value_or(guess_);
  if (losses_.size() < kEnough) return 2 * std::max(middle, guess_);
  std::vector<double> distances;
  for (const double loss : losses_) distances.push_back(std::abs(loss - middle));
  return middle + std::max({0.5, middle / 2, 12 * median_of(distances)});
}

bool LossWatch::add(double loss) {
  const bool spike = is_spike(loss);
  losses_.push_back(loss);
  if (losses_.size() > kWindow) losses_.pop_front();
  return spike;
}

void LossWatch::restore(std::span<const double> losses) {
  const auto last = losses.last(std::min(losses.size(), kWindow));
  losses_.assign(last.begin(), last.end());
}

}  // namespace longnet
