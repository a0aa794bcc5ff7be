// Optimizer arithmetic on flat ranges of float32 memory: AdamW (arXiv 1711.05101), StableAdamW
// (arXiv 2304.13013), sums of squares for norms. Decides nothing about which ranges decay.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet {

struct AdamWOptions {
  double learning_rate = 0;
  double beta1 = 0.9, beta2 = 0.98;
  double eps = 1e-8;
  double weight_decay = 0;    // decoupled: w -= learning_rate * weight_decay * w
  int64_t step = 1;           // 1 for the first update (bias correction)
  double gradient_scale = 1;  // gradients are multiplied by it first (clipping)
};

/// All [n] f32. first_moment, second_moment are updated in place, then
///   AdamW: m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2,
///   w -= lr (wd w + (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps)).
void adamw_update(Context& context, const TensorView& weight, const TensorView& first_moment,
                  const TensorView& second_moment, const TensorView& gradient,
                  const AdamWOptions& options);

/// StableAdamW, one call per tensor: betas b_t = b (1 - b^(t-1)) / (1 - b^t), no other bias
/// correction, learning rate divided by max(1, sqrt(mean(g^2 / max(v, eps^2)))).
/// Returns that root mean square (1 is typical, above 1 the update was clipped).
double stable_adamw_update(Context& context, const TensorView& weight,
                           const TensorView& first_moment, const TensorView& second_moment,
                           const TensorView& gradient, const AdamWOptions& options);

/// Sum of squares, accumulated in double in an order that depends on n alone. A non-finite entry
/// gives a non-finite result.
double sum_of_squares(Context& context, const TensorView& values);

namespace reference {
void adamw_update(const TensorView& weight, const TensorView& first_moment,
                  const TensorView& second_moment, const TensorView& gradient,
                  const AdamWOptions& options);
double stable_adamw_update(const TensorView& weight, const TensorView& first_moment,
                           const TensorView& second_moment, const TensorView& gradient,
                           const AdamWOptions& options);
double sum_of_squares(const TensorView& values);
}  // namespace reference

}  // namespace longnet
