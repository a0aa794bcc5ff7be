// See optimizer.h.
#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

namespace longnet {

Optimizer::Optimizer(Context& context, const OptimizerConfig& config, const ParameterLayout& layout,
                     const TensorView& parameters, const TensorView& gradients, Arena& arena,
                     const OptimizerShards& shards)
    : context_(context),
      config_(config),
      shards_(shards),
      range_{0, layout.elements()},
      parameters_(parameters),
      gradients_(gradients) {
  if (shards_.world != nullptr) {
    const int rank = shards_.world->rank(), ranks = shards_.world->size();
    LN_CHECK(static_cast<int>(shards_.begin.size()) == ranks + 1 && shards_.begin[0] == 0 &&
                 shards_.begin[ranks] == layout.elements() && shards_.piece_elements > 0,
             "{} shard limits for {} ranks", shards_.begin.size(), ranks);
    range_ = {shards_.begin[rank], shards_.begin[rank + 1]};
    shared_begin_.assign(ranks + 1, 0);
    square_begin_.assign(1, 0);
    for (int m = 0; m < ranks; ++m)
      square_begin_.push_back(
          square_begin_.back() +
          sum_term_count({0, layout.elements()}, {shards_.begin[m], shards_.begin[m + 1]}));
    square_terms_.assign(square_begin_.back(), 0.0);
  }
  first_moment_ = arena.allocate_zeroed(DType::kF32, {range_.end - range_.begin});
  second_moment_ = arena.allocate_zeroed(DType::kF32, {range_.end - range_.begin});
  if (const int64_t bytes = optimizer_workspace_bytes(context, range_.end - range_.begin);
      bytes > 0)
    workspace_ = arena.allocate_bytes(bytes);
  for (const ParameterInfo& info : layout.parameters()) add_run(info);
  // shared_begin_[m + 1] has counted the terms of rank m so far.
  for (size_t m = 1; m < shared_begin_.size(); ++m) shared_begin_[m] += shared_begin_[m - 1];
  if (!shared_begin_.empty()) shared_terms_.assign(shared_begin_.back(), 0.0);
}

void Optimizer::add_run(const ParameterInfo& info) {
  const bool adamw = config_.name == "adamw";
  const int shared = adamw || shards_.world == nullptr ? -1 : add_shared(info);
  const int64_t begin = std::max(info.offset, range_.begin);
  const int64_t end = std::min(info.offset + info.elements, range_.end);
  if (begin >= end) return;
  // AdamW treats neighbours with equal decay as one run (padding between them is and stays zero);
  // StableAdamW clips per tensor.
  if (adamw && !runs_.empty() && runs_.back().decays == info.is_matrix)
    runs_.back().end = end;
  else
    runs_.push_back({begin, end, info.is_matrix, shared});
  if (!adamw || shards_.world == nullptr) return;
  // Cut where pieces begin, so that they can leave while the rest is updated.
  for (;;) {
    Run& last = runs_.back();
    const int64_t piece = shards_.piece_elements;
    const int64_t cut = range_.begin + ((last.begin - range_.begin) / piece + 1) * piece;
    if (cut >= last.end) break;
    const Run rest{cut, last.end, last.decays, -1};
    last.end = cut;
    runs_.push_back(rest);
  }
}

int Optimizer::add_shared(const ParameterInfo& info) {
  const SumRange whole{info.offset, info.offset + info.elements};
  Shared tensor{whole, -1, {}, {}};
  const int ranks = shards_.world->size();
  int holders = 0;
  for (int m = 0; m < ranks; ++m) {
    const SumRange part{std::max(whole.begin, shards_.begin[m]),
                        std::min(whole.end, shards_.begin[m + 1])};
    const bool empty = part.begin >= part.end;
    holders += !empty;
    if (!empty && tensor.first_rank < 0) tensor.first_rank = m;
    // A rank that owns nothing may lie between two holders: its part is empty, not left out.
    if (tensor.first_rank >= 0) tensor.parts.push_back(empty ? SumRange{0, 0} : part);
  }
  if (holders < 2) return -1;
  while (tensor.parts.back().begin == tensor.parts.back().end) tensor.parts.pop_back();
  for (size_t i = 0; i < tensor.parts.size(); ++i) {
    int64_t& count = shared_begin_[tensor.first_rank + i + 1];
    tensor.first_terms.push_back(count);
    count += sum_term_count(whole, tensor.parts[i]);
  }
  shared_.push_back(std::move(tensor));
  return static_cast<int>(shared_.size()) - 1;
}

TensorView Optimizer::gradient_part(int64_t begin, int64_t end) const {
  return gradients_.slice(0, begin, end - begin);
}

TensorView Optimizer::moment_part(const TensorView& moment, int64_t begin, int64_t end) const {
  return moment.slice(0, begin - range_.begin, end - begin);
}

void Optimizer::gather_terms(std::vector<double>& terms, const std::vector<int64_t>& begin) {
  std::vector<int64_t> begin_bytes;
  for (int64_t b : begin) begin_bytes.push_back(b * static_cast<int64_t>(sizeof(double)));
  shards_.world->all_gather_host(terms.data(), begin_bytes);
}

double Optimizer::gradient_sum_of_squares() {
  if (shards_.world == nullptr) return sum_of_squares(context_, gradients_, workspace_);
  const SumRange whole{0, gradients_.elements()};
  const int rank = shards_.world->rank();
  const std::span<double> mine(square_terms_.data() + square_begin_[rank],
                               square_begin_[rank + 1] - square_begin_[rank]);
  sum_of_squares_terms(context_, mine, gradient_part(range_.begin, range_.end), whole,
                       {range_.begin, range_.end}, workspace_);
  gather_terms(square_terms_, square_begin_);
  std::vector<SumRange> parts;
  for (size_t m = 0; m + 1 < shards_.begin.size(); ++m)
    parts.push_back({shards_.begin[m], shards_.begin[m + 1]});
  return add_sum_terms(whole, parts, square_terms_);
}

/// For every shared tensor with a part here: updates the part's second moments and returns the
/// whole tensor's mean of g^2 / max(v, eps^2). Collective.
std::vector<double> Optimizer::shared_mean_squares(
    const std::function<AdamWOptions(const Run&)>& options) {
  std::vector<double> means(shared_.size(), 0.0);
  if (shared_terms_.empty()) return means;
  const int rank = shards_.world->rank();
  for (const Run& run : runs_) {
    if (run.shared < 0) continue;
    const Shared& tensor = shared_[run.shared];
    const int64_t first = shared_begin_[rank] + tensor.first_terms[rank - tensor.first_rank];
    const SumRange part{run.begin, run.end};
    stable_adamw_terms(
        context_, {shared_terms_.data() + first, size_t(sum_term_count(tensor.whole, part))},
        moment_part(second_moment_, run.begin, run.end), gradient_part(run.begin, run.end),
        options(run), tensor.whole, part, workspace_);
  }
  gather_terms(shared_terms_, shared_begin_);
  std::vector<double> terms;
  for (const Run& run : runs_) {
    if (run.shared < 0) continue;
    const Shared& tensor = shared_[run.shared];
    terms.clear();
    for (size_t i = 0; i < tensor.parts.size(); ++i) {
      const auto first =
          shared_terms_.begin() + shared_begin_[tensor.first_rank + i] + tensor.first_terms[i];
      terms.insert(terms.end(), first, first + sum_term_count(tensor.whole, tensor.parts[i]));
    }
    means[run.shared] = add_sum_terms(tensor.whole, tensor.parts, terms) /
                        static_cast<double>(tensor.whole.end - tensor.whole.begin);
  }
  return means;
}

void Optimizer::update(int64_t step, double learning_rate, double gradient_scale,
                       const Updated& updated) {
  const auto options = [&](const Run& run) {
    return AdamWOptions{.learning_rate = learning_rate,
                        .beta1 = config_.beta1,
                        .beta2 = config_.beta2,
                        .eps = config_.eps,
                        .weight_decay = run.decays ? config_.weight_decay : 0.0,
                        .step = step,
                        .gradient_scale = gradient_scale,
                        .offset = run.begin};
  };
  const std::vector<double> means = shared_mean_squares(options);
  for (const Run& run : runs_) {
    const TensorView weight = parameters_.slice(0, run.begin, run.end - run.begin);
    const TensorView first = moment_part(first_moment_, run.begin, run.end);
    const TensorView second = moment_part(second_moment_, run.begin, run.end);
    const TensorView gradient = gradient_part(run.begin, run.end);
    if (config_.name == "adamw")
      adamw_update(context_, weight, first, second, gradient, options(run));
    else if (run.shared >= 0)
      stable_adamw_apply(context_, weight, first, second, gradient, options(run),
                         std::sqrt(means[run.shared]));
    else
      stable_adamw_update(context_, weight, first, second, gradient, options(run), workspace_);
    if (updated) updated(run.end);
  }
  if (updated) updated(range_.end);
}

}  // namespace longnet
