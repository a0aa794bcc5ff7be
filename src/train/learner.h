// Learner: one rank's model in training, and the step itself. It takes tokens and returns numbers;
// files, logs and the decisions when to evaluate or save are the Trainer's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/config.h"
#include "core/context.h"
#include "dist/mesh.h"
#include "model/longnet.h"
#include "train/checkpoint.h"
#include "train/optimizer.h"

namespace longnet {

/// This rank's share of one micro-step: [B, L] tokens, and targets (-1: ignored).
struct MicroBatch {
  std::vector<int64_t> tokens, targets;
};

struct StepResult {
  double loss = 0;           // nats, mean over all ranks' targets
  int64_t targets = 0;       // over all ranks
  double gradient_norm = 0;  // L2, of all parameters, before clipping
  double learning_rate = 0;
  bool updated = false;  // false: the step was refused, the weights are as before
};

/// Summed loss and number of targets over all participating ranks.
struct LossSum {
  double nats = 0;
  int64_t targets = 0;
  double mean() const { return targets > 0 ? nats / static_cast<double>(targets) : 0; }
};

/// The loss or the gradient is not finite; the message gives the step and the checkpoint to return
/// to.
class NonFiniteError : public Error {
 public:
  using Error::Error;
};

class Learner {
 public:
  /// mesh: all ranks; it and context must outlive this. With a counting context and mesh nothing is
  /// computed (`longnet plan`). Collective.
  Learner(Context& context, const Config& config, Mesh& mesh);
  ~Learner();

  /// Called with loss and gradient norm before any weight changes. Returns whether to update, the
  /// same answer on every rank. Collective.
  using Accept = std::function<bool(const StepResult&)>;
  /// One optimizer step (1, 2, ...) from config.train.accumulation micro-batches. Throws
  /// NonFiniteError on every rank, before any weight changes, if `accept` accepts numbers that are
  /// not finite. Collective.
  StepResult train_step(std::span<const MicroBatch> batches, int64_t step,
                        const Accept& accept = nullptr);
  /// Loss of a micro-batch, summed over all ranks; no gradients. Collective.
  LossSum evaluate(const MicroBatch& batch);
  /// Initialises the parameters from the seed.
  void initialise();
  /// Call this after writing parameters() from outside (a checkpoint): it renews their bf16 copy,
  /// if any.
  void parameters_changed();
  /// The checkpoint named by NonFiniteError; empty: none yet.
  void set_last_checkpoint(const std::string& path) { last_checkpoint_ = path; }
  const std::string& last_checkpoint() const { return last_checkpoint_; }

  const ParameterLayout& layout() const { return layout_; }
  const SequencePlan& plan() const { return plan_; }
  /// Rank 0 runs `work` with the tensors that save_checkpoint and load_tensors take; the other
  /// ranks provide their share of the moments if the optimizer is sharded. `work` must not call a
  /// collective. Errors end all ranks (train/agreement.h). Collective.
  void with_tensors_on_root(const std::function<void(const TrainingTensors&)>& work);
  /// Sends what rank 0 has loaded to all ranks: all tensors, or only the parameters. Collective.
  void broadcast_tensors();
  void broadcast_parameters();
  /// Waits for parameters that other ranks have updated, as the next forward would.
  const TensorView& parameters() const;
  /// After a step: sums over all ranks; with parallel.shard_optimizer only in optimizer().range().
  const TensorView& gradients() const { return gradients_; }
  const Optimizer& optimizer() const { return *optimizer_; }
  const Traffic& traffic() const { return exchange_->traffic(); }
  int64_t gradient_bytes_sent() const { return gradient_sum_->bytes_sent(); }
  /// Bytes of updated parameters that this rank has sent; 0 without parallel.shard_optimizer.
  int64_t parameter_bytes_sent() const;
  /// (purpose, bytes on this rank): first the arenas, then the memory of the transports.
  std::vector<std::pair<std::string, int64_t>> memory() const;
  /// Local tokens of one micro-batch: B L.
  int64_t local_rows() const { return config_.train.batch_size * plan_.local_tokens(); }

 private:
  /// Waits for the parameters of the last step and renews their bf16 copy if it is out of date.
  void prepare_forward();
  /// Reserves one block of GPU memory per purpose, sized by a counting twin of this learner.
  void reserve_memory();
  void check_room(const Learner& twin) const;
  int64_t count_targets(std::span<const MicroBatch> batches);
  double forward_and_backward(const MicroBatch& batch, int64_t targets, bool last);
  LossSum sum_over_ranks(LossSum local);
  void stop_if_not_finite(int64_t step, double loss, double norm) const;
  double clip_scale(double norm) const;
  /// [B, L] on the context's device; place: the destination on a GPU.
  TensorView on_device(const std::vector<int64_t>& values, const TensorView& place);
  TensorView tokens_of(const MicroBatch& batch);
  TensorView targets_of(const MicroBatch& batch);
  void broadcast(const TensorView& tensor);

  Context& context_;
  Config config_;
  Mesh& mesh_;
  SequencePlan plan_;
  ParameterLayout layout_;
  Arena parameter_arena_, gradient_arena_, optimizer_arena_, activation_arena_, workspace_arena_;
  TensorView parameters_, gradients_;
  TensorView matrices_;  // bf16 copy of the parameters; not defined with f32
  bool matrices_current_ = false;
  TensorView tokens_, targets_;  // [B, L] i64 of the micro-step, on a GPU
  std::unique_ptr<SequenceExchange> exchange_;
  std::unique_ptr<GradientSum> gradient_sum_;
  std::unique_ptr<ParameterGather> parameter_gather_;  // with parallel.shard_optimizer
  std::unique_ptr<LongNet> model_;
  std::unique_ptr<Optimizer> optimizer_;
  std::string last_checkpoint_;
};

}  // namespace longnet
