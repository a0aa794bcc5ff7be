// LossWatch: whether a step's loss stands out from the steps before it.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

namespace longnet {

class LossWatch {
 public:
  static constexpr size_t kWindow = 64;  // number of earlier steps considered
  static constexpr size_t kEnough = 8;   // fewer give no meaningful spread

  explicit LossWatch(int64_t vocab_size);

  /// Largest loss, in nats, that is no spike. With m the median of the last kWindow losses and d
  /// their median distance from m:
  ///   m + max(0.5 nats, m / 2, 12 d)   from kEnough losses on (12 d: about 8 standard deviations)
  ///   2 max(m, ln vocab_size)          before
  double limit() const;
  /// Median of the last losses; nothing before the first one.
  std::optional<double> median() const;
  /// True: a spike. The loss then belongs to the window as any other, so that a lasting change of
  /// the data is reported for at most half a window.
  bool add(double loss);
  /// Whether add(loss) would be true. A loss that is no number is a spike.
  bool is_spike(double loss) const { return !(loss <= limit()); }

  /// The window, oldest loss first, for a checkpoint, and back. More than kWindow: the last count.
  std::vector<double> losses() const { return {losses_.begin(), losses_.end()}; }
  void restore(std::span<const double> losses);

 private:
  double guess_;  // loss of guessing among vocab_size tokens, nats
  std::deque<double> losses_;
};

}  // namespace longnet
