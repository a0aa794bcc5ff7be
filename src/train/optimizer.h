// Optimizer: AdamW or StableAdamW over a model's flat buffers. Decay applies to matrices only.
//
// It owns the two moments (flat): those of the whole layout or, sharded over ranks (ZeRO stage 1,
// arXiv 1910.02054), those of this rank's range. The update of a range is kernels/optimizer; this
// file decides on the ranges. It moves no gradients or parameters between ranks.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/arena.h"
#include "core/config.h"
#include "core/context.h"
#include "dist/communicator.h"
#include "kernels/optimizer/optimizer.h"
#include "model/parameters.h"

namespace longnet {

/// How the flat buffers are divided among ranks.
struct OptimizerShards {
  Communicator* world = nullptr;  // null: not sharded; must outlive the optimizer
  std::vector<int64_t> begin;     // [ranks + 1] elements, as shard_limits gives
  int64_t piece_elements = 0;     // updates are reported at this interval (ParameterGather)
};

class Optimizer {
 public:
  /// Reports that all elements of this rank before `end` of the flat buffer are updated.
  using Updated = std::function<void(int64_t end)>;

  /// arena: the moments are allocated from it, zero. parameters, gradients: flat, must outlive
  /// this.
  Optimizer(Context& context, const OptimizerConfig& config, const ParameterLayout& layout,
            const TensorView& parameters, const TensorView& gradients, Arena& arena,
            const OptimizerShards& shards = {});

  /// Sum of squares of the whole gradient; the same bits on every rank, sharded or not. Sharded:
  /// needs the sums in this rank's range only; collective.
  double gradient_sum_of_squares();
  /// One update of this rank's range with gradients times gradient_scale. step: from 1. The same
  /// bits, sharded or not. Sharded: collective for StableAdamW, whose tensors may lie on several
  /// ranks. `updated` is called with rising ends, the last one being the range's end.
  void update(int64_t step, double learning_rate, double gradient_scale,
              const Updated& updated = {});

  /// This rank's range of the flat buffer, and its moments.
  ParameterRange range() const { return range_; }
  const TensorView& first_moment() const { return first_moment_; }
  const TensorView& second_moment() const { return second_moment_; }

 private:
  struct Run {  // elements of the own range with the same decay
    int64_t begin, end;
    bool decays;
    int shared;  // place in shared_, -1: this rank has the whole tensor (or it does not matter)
  };
  struct Shared {  // a tensor that several ranks have parts of
    SumRange whole;
    int first_rank;
    std::vector<SumRange> parts;       // of first_rank and the following ones
    std::vector<int64_t> first_terms;  // where each part's terms begin among that rank's
  };

  void add_run(const ParameterInfo& info);
  int add_shared(const ParameterInfo& info);
  void gather_terms(std::vector<double>& terms, const std::vector<int64_t>& begin);
  std::vector<double> shared_mean_squares(const std::function<AdamWOptions(const Run&)>& options);
  TensorView gradient_part(int64_t begin, int64_t end) const;
  TensorView moment_part(const TensorView& moment, int64_t begin, int64_t end) const;

  Context& context_;
  OptimizerConfig config_;
  OptimizerShards shards_;
  ParameterRange range_;
  TensorView parameters_, gradients_;        // [n]
  TensorView first_moment_, second_moment_;  // [range]
  void* workspace_ = nullptr;                // of sums, on a GPU
  std::vector<Run> runs_;
  std::vector<Shared> shared_;
  std::vector<int64_t> shared_begin_, square_begin_;  // [ranks + 1] terms of each rank
  std::vector<double> shared_terms_, square_terms_;   // of all ranks
};

}  // namespace longnet
