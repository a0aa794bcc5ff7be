// Dispatcher of optimizer.h: checks, the constants of an update, then the device's twin; and the
// arithmetic of terms, which runs on the host.
#include "kernels/optimizer/optimizer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/optimizer/optimizer_cpu.h"
#include "kernels/optimizer/optimizer_cuda.h"

namespace longnet {
namespace {

void check(const TensorView& weight, const TensorView& first_moment,
           const TensorView& second_moment, const TensorView& gradient,
           const AdamWOptions& options) {
  for (const TensorView* view : {&weight, &first_moment, &second_moment, &gradient}) {
    LN_CHECK(view->elements() == weight.elements() && view->contiguous(), "{} beside {}",
             view->describe(), weight.describe());
    if (view->dtype != DType::kF32)
      throw Error("optimizer state is {}; allowed: f32", dtype_name(view->dtype));
  }
  LN_CHECK(options.step >= 1, "step {}", options.step);
}

// b_t = b (1 - b^(t-1)) / (1 - b^t): 0 at the first step, b in the limit.
double stable_beta(double beta, int64_t step) {
  return beta * (1.0 - std::pow(beta, step - 1)) / (1.0 - std::pow(beta, step));
}

AdamWFactors stable_factors(const AdamWOptions& options, double rate) {
  return {static_cast<float>(options.gradient_scale),
          static_cast<float>(stable_beta(options.beta1, options.step)),
          static_cast<float>(stable_beta(options.beta2, options.step)),
          static_cast<float>(rate),
          static_cast<float>(1.0 - rate * options.weight_decay),
          1.0f,
          static_cast<float>(options.eps)};
}

bool on_gpu(const Context& context) { return context.device().type == DeviceType::kCUDA; }

/// The address on the context's device.
float* place(const Context& context, const TensorView& view) {
  return on_gpu(context) ? view.on_gpu<float>() : view.f32();
}

/// A sum over a whole that is all on the GPU.
template <typename TermsOf>
double gpu_sum(const SumRange& whole, void* workspace, TermsOf terms_of) {
  LN_CHECK(workspace != nullptr, "no workspace");
  std::vector<double> terms(sum_term_count(whole, whole));
  terms_of(terms.data());
  return add_sum_terms(whole, std::span<const SumRange>(&whole, 1), terms);
}

}  // namespace

int64_t optimizer_workspace_bytes(const Context& context, int64_t elements) {
  if (!on_gpu(context)) return 0;
  // A term for each block, and for each cell of the two blocks that a part may cut.
  return (elements / kSumBlock + 2 + 2 * (kSumBlock / kSumCell)) *
         static_cast<int64_t>(sizeof(double));
}

void adamw_update(Context& context, const TensorView& weight, const TensorView& first_moment,
                  const TensorView& second_moment, const TensorView& gradient,
                  const AdamWOptions& options) {
  check(weight, first_moment, second_moment, gradient, options);
  if (context.counting()) return;
  const double correction1 = 1.0 - std::pow(options.beta1, options.step);
  const double correction2 = 1.0 - std::pow(options.beta2, options.step);
  const AdamWFactors factors{static_cast<float>(options.gradient_scale),
                             static_cast<float>(options.beta1),
                             static_cast<float>(options.beta2),
                             static_cast<float>(options.learning_rate / correction1),
                             static_cast<float>(1.0 - options.learning_rate * options.weight_decay),
                             static_cast<float>(1.0 / correction2),
                             static_cast<float>(options.eps)};
  (on_gpu(context) ? cuda::adamw_update : cpu::adamw_update)(
      context, place(context, weight), place(context, first_moment), place(context, second_moment),
      place(context, gradient), weight.elements(), factors);
}

double stable_adamw_update(Context& context, const TensorView& weight,
                           const TensorView& first_moment, const TensorView& second_moment,
                           const TensorView& gradient, const AdamWOptions& options,
                           void* workspace) {
  check(weight, first_moment, second_moment, gradient, options);
  if (context.counting() || weight.elements() == 0) return 1.0;
  const AdamWFactors factors = stable_factors(options, 0);
  const int64_t count = weight.elements();
  const SumRange whole{options.offset, options.offset + count};
  float *v = place(context, second_moment), *g = place(context, gradient);
  const double ratio = on_gpu(context) ? gpu_sum(whole, workspace,
                                                 [&](double* terms) {
                                                   cuda::stable_terms(context, terms, v, g, factors,
                                                                      whole, whole, workspace);
                                                 })
                                       : cpu::stable_sum(context, v, g, factors, whole);
  const double rms = std::sqrt(ratio / static_cast<double>(count));
  stable_adamw_apply(context, weight, first_moment, second_moment, gradient, options, rms);
  return rms;
}

void stable_adamw_terms(Context& context, std::span<double> terms, const TensorView& second_moment,
                        const TensorView& gradient, const AdamWOptions& options,
                        const SumRange& whole, const SumRange& part, void* workspace) {
  check(second_moment, second_moment, second_moment, gradient, options);
  LN_CHECK(second_moment.elements() == part.end - part.begin &&
               static_cast<int64_t>(terms.size()) == sum_term_count(whole, part),
           "{} and {} terms for [{}, {})", second_moment.describe(), terms.size(), part.begin,
           part.end);
  if (context.counting()) return;
  const AdamWFactors factors = stable_factors(options, 0);
  float *v = place(context, second_moment), *g = place(context, gradient);
  if (!on_gpu(context)) return cpu::stable_terms(context, terms.data(), v, g, factors, whole, part);
  LN_CHECK(workspace != nullptr, "no workspace");
  cuda::stable_terms(context, terms.data(), v, g, factors, whole, part, workspace);
}

void stable_adamw_apply(Context& context, const TensorView& weight, const TensorView& first_moment,
                        const TensorView& second_moment, const TensorView& gradient,
                        const AdamWOptions& options, double root_mean_square) {
  check(weight, first_moment, second_moment, gradient, options);
  if (context.counting()) return;
  const AdamWFactors factors =
      stable_factors(options, options.learning_rate / std::max(1.0, root_mean_square));
  (on_gpu(context) ? cuda::stable_apply : cpu::stable_apply)(
      context, place(context, weight), place(context, first_moment), place(context, second_moment),
      place(context, gradient), weight.elements(), factors);
}

double sum_of_squares(Context& context, const TensorView& values, void* workspace) {
  LN_CHECK(values.contiguous(), "sum of squares of the strided {}", values.describe());
  if (context.counting()) return 0.0;
  const SumRange whole{0, values.elements()};
  const float* x = place(context, values);
  if (!on_gpu(context)) return cpu::square_sum(context, x, whole);
  return gpu_sum(whole, workspace, [&](double* terms) {
    cuda::square_terms(context, terms, x, whole, whole, workspace);
  });
}

void sum_of_squares_terms(Context& context, std::span<double> terms, const TensorView& values,
                          const SumRange& whole, const SumRange& part, void* workspace) {
  LN_CHECK(values.contiguous() && values.elements() == part.end - part.begin &&
               static_cast<int64_t>(terms.size()) == sum_term_count(whole, part),
           "{} and {} terms for [{}, {})", values.describe(), terms.size(), part.begin, part.end);
  if (context.counting()) return;
  const float* x = place(context, values);
  if (!on_gpu(context)) return cpu::square_terms(context, terms.data(), x, whole, part);
  LN_CHECK(workspace != nullptr, "no workspace");
  cuda::square_terms(context, terms.data(), x, whole, part, workspace);
}

int64_t sum_term_count(const SumRange& whole, const SumRange& part) {
  if (part.begin == part.end) return 0;
  LN_CHECK(part.begin < part.end && whole.begin <= part.begin && part.end <= whole.end &&
               (part.begin % kSumCell == 0 || part.begin == whole.begin) &&
               (part.end % kSumCell == 0 || part.end == whole.end),
           "part [{}, {}) of a sum over [{}, {})", part.begin, part.end, whole.begin, whole.end);
  const int64_t first = part.begin / kSumBlock, last = (part.end - 1) / kSumBlock;
  if (first == last) return block_part(whole, part, first).terms();
  return block_part(whole, part, first).terms() + last - first - 1 +
         block_part(whole, part, last).terms();
}

double add_sum_terms(const SumRange& whole, std::span<const SumRange> parts,
                     std::span<const double> terms) {
  double total = 0, cells = 0;  // of the blocks so far; of the block that is not yet complete
  size_t next = 0;
  for (const SumRange& part : parts) {
    const int64_t count = sum_term_count(whole, part);
    if (count == 0) continue;
    LN_CHECK(next + static_cast<size_t>(count) <= terms.size(), "{} terms are too few",
             terms.size());
    for (int64_t b = part.begin / kSumBlock; b <= (part.end - 1) / kSumBlock; ++b) {
      const BlockPart block = block_part(whole, part, b);
      if (block.whole) {
        total += terms[next++];
        continue;
      }
      for (int64_t i = block.terms(); i > 0; --i) cells += terms[next++];
      if (block.range.end == std::min(whole.end, (b + 1) * kSumBlock)) {
        total += cells;
        cells = 0;
      }
    }
  }
  LN_CHECK(next == terms.size(), "{} terms, {} used", terms.size(), next);
  return total;
}

}  // namespace longnet
