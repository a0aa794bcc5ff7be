// Learner: one rank's model in training, and the step itself. It takes tokens and gives numbers;
// files, logs and decisions about when to evaluate or save are the Trainer's.
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
};

/// Summed loss and the number of targets, over the ranks that took part.
struct LossSum {
  double nats = 0;
  int64_t targets = 0;
  double mean() const { return targets > 0 ? nats / static_cast<double>(targets) : 0; }
};

/// What must be said when numbers are no longer finite: the step, and where to go back to.
class NonFiniteError : public Error {
 public:
  using Error::Error;
};

class Learner {
 public:
  /// mesh: all ranks; must outlive this, as must context. With a counting context and mesh nothing
  /// is computed (`longnet plan`). Collective.
  Learner(Context& context, const Config& config, Mesh& mesh);
  ~Learner();

  /// One optimizer step (1, 2, ...) from config.train.accumulation micro-batches. Collective.
  /// Throws NonFiniteError on every rank before any weight changes.
  StepResult train_step(std::span<const MicroBatch> batches, int64_t step);
  /// Loss of a micro-batch, summed over all ranks; no gradients. Collective.
  LossSum evaluate(const MicroBatch& batch);
  /// Parameters from the seed.
  void initialise();
  /// To be called after parameters() were written from outside (a checkpoint): renews their bf16
  /// copy, if there is one.
  void parameters_changed();
  /// Named in NonFiniteError; empty: none yet.
  void set_last_checkpoint(const std::string& path) { last_checkpoint_ = path; }
  const std::string& last_checkpoint() const { return last_checkpoint_; }

  const ParameterLayout& layout() const { return layout_; }
  const SequencePlan& plan() const { return plan_; }
  /// Rank 0 runs `work` with the tensors that save_checkpoint and load_tensors take, and the other
  /// ranks lend it their share of the moments if the optimizer is sharded. `work` may call no
  /// collective. Errors end all ranks (train/agreement.h). Collective.
  void with_tensors_on_root(const std::function<void(const TrainingTensors&)>& work);
  /// Gives what rank 0 has loaded to all ranks: all of it, or the parameters only. Collective.
  void broadcast_tensors();
  void broadcast_parameters();
  /// Waits for the parameters that other ranks have updated, as the next forward would.
  const TensorView& parameters() const;
  /// After a step: sums over all ranks; with parallel.shard_optimizer in optimizer().range() only.
  const TensorView& gradients() const { return gradients_; }
  const Optimizer& optimizer() const { return *optimizer_; }
  const Traffic& traffic() const { return exchange_->traffic(); }
  int64_t gradient_bytes_sent() const { return gradient_sum_->bytes_sent(); }
  /// Of updated parameters; 0 without parallel.shard_optimizer.
  int64_t parameter_bytes_sent() const;
  /// (purpose, bytes on this rank), arenas first, then what the transports hold.
  std::vector<std::pair<std::string, int64_t>> memory() const;
  /// Local tokens of one micro-batch: B L.
  int64_t local_rows() const { return config_.train.batch_size * plan_.local_tokens(); }

 private:
  /// Waits for the parameters of the last step and renews their bf16 copy where it is old.
  void prepare_forward();
  /// One block of GPU memory per purpose, as large as a counting twin of this learner finds.
  void reserve_memory();
  void check_room(const Learner& twin) const;
  int64_t count_targets(std::span<const MicroBatch> batches);
  double forward_and_backward(const MicroBatch& batch, int64_t targets, bool last);
  LossSum sum_over_ranks(LossSum local);
  void stop_if_not_finite(int64_t step, double loss, double norm) const;
  double clip_scale(double norm) const;
  /// [B, L] on the context's device; place: where values go on a GPU.
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
