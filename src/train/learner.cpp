// See learner.h and docs/walkthrough.md: train_step is the page to start from.
#include "train/learner.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/host_copy.h"
#include "kernels/cast/cast.h"
#include "kernels/embedding/embedding.h"
#include "kernels/fill/fill.h"
#include "kernels/linear/linear.h"
#include "train/agreement.h"
#include "train/schedule.h"
#include "train/sharded_moments.h"

namespace longnet {
namespace {

constexpr int64_t kLibraryBytes = int64_t{512} << 20, kNcclBytes = int64_t{1} << 30;

}  // namespace

Learner::Learner(Context& context, const Config& config, Mesh& mesh)
    : context_(context),
      config_(config),
      mesh_(mesh),
      plan_(config.train.sequence_length, mesh.sequence_ranks(), mesh.sequence_rank(),
            config.model.heads, config.model.branches, config.model.head_offset_mode()),
      layout_(config.model),
      parameter_arena_("parameters", context.counting(), context.device()),
      gradient_arena_("gradients", context.counting(), context.device()),
      optimizer_arena_("optimizer", context.counting(), context.device()),
      activation_arena_("activations", context.counting(), context.device()),
      workspace_arena_("workspace", context.counting(), context.device()) {
  context.set_attention(attention_choice(config.run.attention));
  if (context.on_gpu() && !context.counting()) reserve_memory();
  if (const int64_t scratch = linear_workspace_bytes(context); scratch > 0)
    context.set_library_workspace(workspace_arena_.allocate_bytes(scratch), scratch);
  parameters_ = parameter_arena_.allocate_zeroed(DType::kF32, {layout_.elements()});
  gradients_ = gradient_arena_.allocate_zeroed(DType::kF32, {layout_.elements()});
  if (float_type(config.run.dtype) == DType::kBF16)
    matrices_ = parameter_arena_.allocate_zeroed(DType::kBF16, {layout_.elements()});
  if (context.on_gpu())
    for (TensorView* view : {&tokens_, &targets_})
      *view =
          activation_arena_.allocate(DType::kI64, {config.train.batch_size, plan_.local_tokens()});
  exchange_ = std::make_unique<SequenceExchange>(*mesh.sequence, plan_, config.train.batch_size,
                                                 config.model.head_dim());
  OptimizerShards shards;
  const int64_t bucket_bytes = config.parallel.bucket_mib << 20;
  if (config.parallel.shard_optimizer) {
    shards.world = mesh.world.get();
    shards.begin = shard_limits(layout_.elements(), mesh.world->size());
    parameter_gather_ =
        std::make_unique<ParameterGather>(*mesh.world, parameters_, shards.begin, bucket_bytes);
    shards.piece_elements = parameter_gather_->piece_elements();
  }
  gradient_sum_ =
      std::make_unique<GradientSum>(*mesh.world, gradients_, bucket_bytes, shards.begin);
  model_ = std::make_unique<LongNet>(context, config.model, plan_, config.train.batch_size, layout_,
                                     parameters_, gradients_, *exchange_,
                                     ModelArenas{activation_arena_, workspace_arena_},
                                     LongNetOptions{.attention = nullptr,
                                                    .recompute = config.train.recompute == "layer",
                                                    .recompute_rows = config.train.recompute_rows,
                                                    .matrices = matrices_});
  optimizer_ = std::make_unique<Optimizer>(context, config.optimizer, layout_, parameters_,
                                           gradients_, optimizer_arena_, shards);
}

Learner::~Learner() { context_.set_library_workspace(nullptr, 0); }

void Learner::reserve_memory() {
  Context context({.device = context_.device(), .threads = context_.threads(), .counting = true});
  Mesh mesh;
  mesh.world = make_counting_communicator(mesh_.world->size(), mesh_.world->rank());
  mesh.sequence = make_counting_communicator(mesh_.sequence_ranks(), mesh_.sequence_rank());
  mesh.replica = mesh_.replica;
  mesh.replicas = mesh_.replicas;
  const Learner twin(context, config_, mesh);
  check_room(twin);
  parameter_arena_.reserve(twin.parameter_arena_.bytes());
  gradient_arena_.reserve(twin.gradient_arena_.bytes());
  optimizer_arena_.reserve(twin.optimizer_arena_.bytes());
  activation_arena_.reserve(twin.activation_arena_.bytes());
  workspace_arena_.reserve(twin.workspace_arena_.bytes());
}

/// Compares all requests at once, so that one line names everything that does not fit.
void Learner::check_room(const Learner& twin) const {
  std::string table;
  int64_t wanted = 0;
  for (const auto& [purpose, bytes] : twin.memory()) {
    table += fmt::format("{}{} {}", table.empty() ? "" : ", ", purpose, bytes);
    wanted += bytes;
  }
  // What the libraries take later, by themselves: their kernels and plans; NCCL's buffers, which it
  // makes for the first collective of each communicator.
  const int64_t libraries = mesh_.world->size() > 1 ? kLibraryBytes + kNcclBytes : kLibraryBytes;
  const device_runtime::MemoryInfo memory = device_runtime::memory_info();
  if (wanted + libraries <= memory.free) return;
  throw Error(
      "out of GPU memory: the model needs {} bytes ({}) and {} for libraries; {} has {} of {} "
      "bytes free; set train.recompute=layer or parallel.shard_optimizer=true, use more ranks, a "
      "shorter train.sequence_length or a smaller train.batch_size",
      wanted, table, libraries, device_name(context_.device()), memory.free, memory.total);
}

void Learner::initialise() {
  initialise_parameters(context_, layout_, parameters(), static_cast<uint64_t>(config_.train.seed));
  parameters_changed();
}

void Learner::parameters_changed() { matrices_current_ = false; }

void Learner::prepare_forward() {
  const TensorView& all = parameters();  // of the last step, all here
  if (matrices_.defined() && !matrices_current_) cast(context_, matrices_, all);
  matrices_current_ = true;
}

StepResult Learner::train_step(std::span<const MicroBatch> batches, int64_t step,
                               const Accept& accept) {
  LN_CHECK(!batches.empty(), "a step without data");
  const Phase phase("step");
  StepResult result;
  result.targets = count_targets(batches);
  fill(context_, gradients_, 0.0f);
  LossSum loss{0, result.targets};
  for (size_t i = 0; i < batches.size(); ++i)
    loss.nats += forward_and_backward(batches[i], result.targets, i + 1 == batches.size());
  {
    Range range(context_, "gradient_sum");
    gradient_sum_->wait();
    result.loss = sum_over_ranks({loss.nats, 0}).nats / static_cast<double>(result.targets);
  }
  result.gradient_norm = std::sqrt(optimizer_->gradient_sum_of_squares());
  if (accept && !accept(result)) return result;
  Range range(context_, "optimizer");
  stop_if_not_finite(step, result.loss, result.gradient_norm);
  result.learning_rate = learning_rate_at(config_.optimizer, step, config_.train.steps);
  // Sharded: pieces of this rank's range travel while the rest of it is updated.
  optimizer_->update(step, result.learning_rate, clip_scale(result.gradient_norm),
                     [&](int64_t end) {
                       if (parameter_gather_) parameter_gather_->ready(end);
                     });
  parameters_changed();
  result.updated = true;
  return result;
}

int64_t Learner::count_targets(std::span<const MicroBatch> batches) {
  int64_t count = 0;
  for (const MicroBatch& batch : batches)
    for (int64_t target : batch.targets) count += target >= 0;
  if (context_.counting())
    return local_rows() * mesh_.world->size() * static_cast<int64_t>(batches.size());
  mesh_.world->all_reduce_sum(std::span<int64_t>(&count, 1));
  return std::max<int64_t>(count, 1);
}

TensorView Learner::on_device(const std::vector<int64_t>& values, const TensorView& place) {
  const int64_t batch = config_.train.batch_size, local = plan_.local_tokens();
  LN_CHECK(context_.counting() || static_cast<int64_t>(values.size()) == batch * local,
           "{} tokens for [{}, {}]", values.size(), batch, local);
  if (context_.on_gpu()) {
    copy_from_host(context_, place, values.data());
    return place;
  }
  // Never null, so that an empty shard is still a tensor; kernels only read tokens.
  static int64_t nothing = 0;
  const int64_t* data = values.empty() ? &nothing : values.data();
  return TensorView(const_cast<int64_t*>(data), DType::kI64, {batch, local});
}

TensorView Learner::tokens_of(const MicroBatch& batch) {
  if (context_.on_gpu()) check_tokens(batch.tokens, config_.model.vocab_size);
  return on_device(batch.tokens, tokens_);
}

TensorView Learner::targets_of(const MicroBatch& batch) {
  return on_device(batch.targets, targets_);
}

void Learner::with_tensors_on_root(const std::function<void(const TrainingTensors&)>& work) {
  Context* const gpu = context_.on_gpu() ? &context_ : nullptr;
  TrainingTensors tensors{parameters(), optimizer_->first_moment(), optimizer_->second_moment(),
                          nullptr, gpu};
  if (!config_.parallel.shard_optimizer) return run_on_root(*mesh_.world, [&] { work(tensors); });
  ShardedMoments moments(context_, *mesh_.world, *optimizer_,
                         shard_limits(layout_.elements(), mesh_.world->size()));
  tensors = {parameters_, {}, {}, &moments, gpu};
  moments.run_on_root([&] { work(tensors); });
}

void Learner::broadcast_tensors() {
  broadcast_parameters();
  if (config_.parallel.shard_optimizer) return;  // each rank has got its own moments already
  broadcast(optimizer_->first_moment());
  broadcast(optimizer_->second_moment());
}

void Learner::broadcast_parameters() { broadcast(parameters()); }

/// Rank 0's values to all; broadcasts take host memory.
void Learner::broadcast(const TensorView& tensor) {
  Communicator& world = *mesh_.world;
  if (!context_.on_gpu()) return world.broadcast(tensor.data, tensor.bytes(), 0);
  if (world.size() == 1) return;
  constexpr int64_t kPieceElements = int64_t{4} << 20;  // 16 MiB of host memory
  const int64_t elements = tensor.elements();
  std::vector<float> piece(static_cast<size_t>(std::min(kPieceElements, elements)));
  for (int64_t begin = 0; begin < elements; begin += kPieceElements) {
    const TensorView part = tensor.slice(0, begin, std::min(kPieceElements, elements - begin));
    if (world.rank() == 0) copy_to_host(context_, piece.data(), part);
    world.broadcast(piece.data(), part.bytes(), 0);
    if (world.rank() != 0) copy_from_host(context_, part, piece.data());
  }
}

const TensorView& Learner::parameters() const {
  if (parameter_gather_) parameter_gather_->wait();
  return parameters_;
}

int64_t Learner::parameter_bytes_sent() const {
  return parameter_gather_ ? parameter_gather_->bytes_sent() : 0;
}

double Learner::forward_and_backward(const MicroBatch& batch, int64_t targets, bool last) {
  prepare_forward();
  model_->forward(tokens_of(batch));
  // The gradients of earlier micro-steps are not final: only the last one's ranges may travel.
  const LongNet::GradientsReady ready = [&](const ParameterRange& range) {
    if (!last) return;
    gradient_sum_->ready(range.begin, range.end);
    gradient_sum_->progress();  // starts buckets that waited for a place
  };
  return model_->loss_and_backward(targets_of(batch), 1.0 / static_cast<double>(targets), ready)
      .loss_sum;
}

LossSum Learner::sum_over_ranks(LossSum local) {
  std::array<double, 2> sums{local.nats, static_cast<double>(local.targets)};
  mesh_.world->all_reduce_sum(sums);
  return {sums[0], static_cast<int64_t>(sums[1])};
}

LossSum Learner::evaluate(const MicroBatch& batch) {
  prepare_forward();
  model_->forward(tokens_of(batch));
  const CrossEntropyResult result = model_->loss(targets_of(batch));
  return sum_over_ranks({result.loss_sum, result.count});
}

void Learner::stop_if_not_finite(int64_t step, double loss, double norm) const {
  // Loss and gradients are sums over all ranks, the same bits everywhere: all ranks decide alike.
  if (std::isfinite(loss) && std::isfinite(norm)) return;
  const auto shown = [](double x) { return std::isnan(x) ? std::abs(x) : x; };  // no "-nan"
  throw NonFiniteError(
      "step {}: loss {}, gradient norm {}: stopped before the weights changed; {}", step,
      shown(loss), shown(norm),
      last_checkpoint_.empty()
          ? "there is no good checkpoint: lower optimizer.learning_rate and start anew, with "
            "another "
            "run.folder or with checkpoint.resume=none run.overwrite=true"
          : fmt::format("the last good checkpoint is {}: lower optimizer.learning_rate and resume",
                        last_checkpoint_));
}

double Learner::clip_scale(double norm) const {
  const double limit = config_.optimizer.clip_norm;
  return limit > 0 && norm > limit ? limit / norm : 1.0;
}

std::vector<std::pair<std::string, int64_t>> Learner::memory() const {
  std::vector<std::pair<std::string, int64_t>> table;
  for (const Arena* arena : {&parameter_arena_, &gradient_arena_, &optimizer_arena_,
                             &activation_arena_, &workspace_arena_})
    table.emplace_back(arena->purpose(), arena->bytes());
  table.emplace_back("exchange", exchange_->staging_bytes() + gradient_sum_->staging_bytes());
  return table;
}

}  // namespace longnet
