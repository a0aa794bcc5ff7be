// Optimizer arithmetic on flat ranges of float32 memory: AdamW (arXiv 1711.05101), StableAdamW
// (arXiv 2304.13013), sums of squares for norms. Decides nothing about which ranges decay. Twins:
// optimizer_reference.cpp, optimizer_cpu.cpp, optimizer_cuda.cu.
#pragma once

#include <cstdint>
#include <span>

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
  int64_t offset = 0;         // place of the first element in the flat buffer: where sums are cut
};

/// Elements [begin, end) of a flat buffer.
struct SumRange {
  int64_t begin = 0;
  int64_t end = 0;
};

/// Sums over a range of the flat buffer (the "whole") have one order, whoever holds its parts. The
/// buffer is cut at multiples of 64 into cells and at multiples of 16384 into blocks; a cell's
/// elements are added first, then a block's cells in order, then the blocks in order. A rank that
/// holds only a part of the whole gives its *terms*: one for each block that lies in its part as
/// far as it lies in the whole, and one for each cell of the others. Parts begin and end at
/// multiples of 64, or where the whole does.
inline constexpr int64_t kSumCell = 64;
inline constexpr int64_t kSumBlock = 16384;

/// How many terms a part of the whole has. Throws Error for a part that cuts a cell.
int64_t sum_term_count(const SumRange& whole, const SumRange& part);
/// The sum from the terms of the parts, one part's after the other's; parts tile the whole in
/// order.
double add_sum_terms(const SumRange& whole, std::span<const SumRange> parts,
                     std::span<const double> terms);

/// Functions that sum take a workspace: on a GPU so many bytes of its memory for sums over at most
/// `elements` (they wait for the terms, which the host adds); on the CPU 0, and it is not read.
int64_t optimizer_workspace_bytes(const Context& context, int64_t elements);

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
                           const TensorView& gradient, const AdamWOptions& options,
                           void* workspace = nullptr);

/// The two halves of stable_adamw_update, for a tensor that several ranks hold parts of. All views
/// [part]; options.offset is unused. First: updates the second moments, terms (sum_term_count of
/// them) of the sum of g^2 / max(v, eps^2) over the tensor `whole`.
void stable_adamw_terms(Context& context, std::span<double> terms, const TensorView& second_moment,
                        const TensorView& gradient, const AdamWOptions& options,
                        const SumRange& whole, const SumRange& part, void* workspace = nullptr);
/// Then, with the root of the whole tensor's mean: updates the first moments and the weights.
void stable_adamw_apply(Context& context, const TensorView& weight, const TensorView& first_moment,
                        const TensorView& second_moment, const TensorView& gradient,
                        const AdamWOptions& options, double root_mean_square);

/// Sum of squares, accumulated in double in the order above, where values is the whole from 0: it
/// depends on n alone. A non-finite entry gives a non-finite result.
double sum_of_squares(Context& context, const TensorView& values, void* workspace = nullptr);
/// Terms of the same sum from a part of the whole; values [part].
void sum_of_squares_terms(Context& context, std::span<double> terms, const TensorView& values,
                          const SumRange& whole, const SumRange& part, void* workspace = nullptr);

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
