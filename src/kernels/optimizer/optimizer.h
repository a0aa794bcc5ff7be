// Optimizer arithmetic on flat ranges of float32 memory: AdamW (arXiv 1711.05101), StableAdamW
// (arXiv 2304.13013), sums of squares for norms. The caller decides which ranges decay. Twins:
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

/// Sums over a range of the flat buffer (the "whole") have one order, whichever ranks hold its
/// parts. The buffer is cut at multiples of 64 into cells and at multiples of 16384 into blocks;
/// first a cell's elements are added, then a block's cells in order, then the blocks in order. A
/// rank that holds only a part of the whole computes its *terms*: one for each block whose elements
/// of the whole all lie in its part, and one for each cell of the other blocks. Parts begin and end
/// at multiples of 64, or where the whole does.
inline constexpr int64_t kSumCell = 64;
inline constexpr int64_t kSumBlock = 16384;

/// Number of terms of a part of the whole. Throws Error for a part that cuts a cell.
int64_t sum_term_count(const SumRange& whole, const SumRange& part);
/// The sum from the terms of all parts, concatenated; the parts tile the whole in order.
double add_sum_terms(const SumRange& whole, std::span<const SumRange> parts,
                     std::span<const double> terms);

/// Bytes of workspace for functions that sum over at most `elements`. On a GPU it is device memory
/// (they wait for the terms, which the host adds); on the CPU it is 0, and the workspace is not
/// read.
int64_t optimizer_workspace_bytes(const Context& context, int64_t elements);

/// All tensors [n] f32. Updates first_moment and second_moment in place, then the weights:
///   AdamW:  m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,
///           w -= lr (wd w + (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)).
void adamw_update(Context& context, const TensorView& weight, const TensorView& first_moment,
                  const TensorView& second_moment, const TensorView& gradient,
                  const AdamWOptions& options);

/// StableAdamW, one call per tensor: betas b_t = b (1 - b^(t-1)) / (1 - b^t) without further bias
/// correction; the learning rate is divided by max(1, sqrt(mean(g^2 / max(v, eps^2)))). Returns
/// that root mean square (typically 1; above 1 the update was clipped).
double stable_adamw_update(Context& context, const TensorView& weight,
                           const TensorView& first_moment, const TensorView& second_moment,
                           const TensorView& gradient, const AdamWOptions& options,
                           void* workspace = nullptr);

/// The two halves of stable_adamw_update, for a tensor of which several ranks hold parts. All views
/// [part]; options.offset is not used. First half: updates the second moments and computes the
/// terms (sum_term_count of them) of the sum of g^2 / max(v, eps^2) over the tensor `whole`.
void stable_adamw_terms(Context& context, std::span<double> terms, const TensorView& second_moment,
                        const TensorView& gradient, const AdamWOptions& options,
                        const SumRange& whole, const SumRange& part, void* workspace = nullptr);
/// Second half, with the root of the whole tensor's mean: updates the first moments and the
/// weights.
void stable_adamw_apply(Context& context, const TensorView& weight, const TensorView& first_moment,
                        const TensorView& second_moment, const TensorView& gradient,
                        const AdamWOptions& options, double root_mean_square);

/// Sum of squares, accumulated in double in the order above, where `values` is the whole and begins
/// at 0; it depends on n alone. A non-finite entry gives a non-finite result.
double sum_of_squares(Context& context, const TensorView& values, void* workspace = nullptr);
/// Terms of the sum of squares from a part of the whole; values [part].
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
