// See trainer.h. run() is the loop; Learner::train_step is one step.
#include "train/trainer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <optional>
#include <utility>

#include "core/clock.h"
#include "core/failure.h"
#include "core/log.h"
#include "kernels/machine/machine.h"
#include "model/generation.h"
#include "train/agreement.h"
#include "train/backend.h"
#include "train/checkpoint.h"
#include "train/checkpoint_saver.h"
#include "train/loss_watch.h"
#include "train/metrics.h"
#include "train/rank_context.h"
#include "train/resume.h"
#include "train/rollback.h"
#include "train/run_lock.h"
#include "train/schedule.h"
#include "train/signals.h"

namespace longnet {
namespace {

constexpr double kFolderSeconds = 1;  // between looks at the run's folder

}  // namespace

MicroBatch read_micro_batch(const Dataset& dataset, const SequencePlan& plan,
                            std::span<const int64_t> samples) {
  const int64_t local = plan.local_tokens();
  MicroBatch batch;
  batch.tokens.assign(samples.size() * local, 0);
  batch.targets.assign(samples.size() * local, -1);
  for (size_t b = 0; b < samples.size(); ++b)
    if (samples[b] >= 0)
      dataset.read(samples[b], plan.local_begin(), local, batch.tokens.data() + b * local,
                   batch.targets.data() + b * local);
  return batch;
}

LossSum evaluate_dataset(Learner& learner, const Mesh& mesh, const Config& config,
                         const Dataset& dataset, int64_t samples,
                         const std::function<bool()>& stop) {
  const Phase phase("evaluate");
  const int64_t count = samples > 0 ? std::min(samples, dataset.samples()) : dataset.samples();
  const int64_t per_replica = config.train.batch_size, all = per_replica * mesh.replicas;
  LossSum total;
  for (int64_t first = 0; first < count; first += all) {
    std::vector<int64_t> mine;
    for (int64_t b = 0; b < per_replica; ++b) {
      const int64_t sample = first + mesh.replica * per_replica + b;
      mine.push_back(sample < count ? sample : -1);
    }
    MicroBatch batch;
    run_on_all(*mesh.world, [&] { batch = read_micro_batch(dataset, learner.plan(), mine); });
    const LossSum part = learner.evaluate(batch);
    total.nats += part.nats;
    total.targets += part.targets;
    // The sum has the same bits on every rank, so all ranks throw.
    if (!std::isfinite(total.nats))
      throw NonFiniteError(
          "evaluation: the loss is {} on sequences {} to {}: the weights are unusable; use an "
          "earlier checkpoint",
          std::isnan(total.nats) ? "nan" : "inf", first, std::min(first + all, count) - 1);
    if (stop && stop()) break;
  }
  return total;
}

std::unique_ptr<Dataset> open_dataset(Communicator& world, const Config& config, Split split) {
  std::unique_ptr<Dataset> dataset;
  const auto open = [&] {
    dataset = std::make_unique<Dataset>(config.data, split, config.train.sequence_length,
                                        config.model.vocab_size);
  };
  run_on_root(world, open);
  run_on_all(world, [&] {
    if (world.rank() != 0) open();
  });
  const DataFingerprint print = dataset->fingerprint();
  check_same_on_all(
      world, split == Split::kTrain ? "data.train" : "data.validation",
      {fmt::format("{} files, {} bytes, hash {}", print.files, print.bytes, print.hash)});
  return dataset;
}

std::string sample_text(Context& context, const Config& config, const ParameterLayout& layout,
                        const TensorView& parameters, const std::string& prompt, int64_t tokens,
                        double temperature, int64_t top_k, uint64_t seed,
                        const std::function<bool()>& stop) {
  Generator generator(context, config.model, layout, parameters);
  const bool bytes = config.model.vocab_size == 256;
  std::vector<int64_t> read;
  // Other vocabularies have no text form here: they start from token 0.
  if (bytes)
    for (unsigned char c : prompt) read.push_back(c);
  if (read.empty()) read.push_back(0);
  std::vector<float> logits = generator.prefill(read);
  std::string text = bytes ? prompt : "";
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t token =
        sample_token(logits, {.temperature = temperature, .top_k = top_k, .seed = seed},
                     static_cast<uint64_t>(i));
    if (bytes)
      text += static_cast<char>(token);
    else
      text += fmt::format("{}{}", i ? " " : "", token);
    if (stop && stop()) break;
    if (i + 1 < tokens) logits = generator.step(token);
  }
  return text;
}

struct Trainer::Impl {
  Impl(const Config& config, std::unique_ptr<Communicator> world);
  ~Impl() { signals.remove_at_end("", 0); }  // a later holder's lock is not ours to remove
  void run();

  bool plan_start();
  void resume();
  void describe();
  std::vector<int64_t> next_samples(DataState& place) const;
  std::vector<MicroBatch> read_step(DataState& place);
  void report(const StepResult& result, double seconds, const Work& before, const Traffic& traffic,
              int64_t gradient_bytes, int64_t parameter_bytes);
  bool evaluation_due() const;
  bool evaluate();
  void sample();
  double loss_of_next();
  void save(std::optional<double> loss, bool must);
  void write_checkpoint(const TrainingState& to_save, bool must);
  void save_now(bool must);
  void save_and_end(int signal);
  void keep_folder();
  void end_together(const std::string& failure);
  std::vector<MicroBatch> next_batches();
  bool refuses(double loss, double norm) const;
  bool accept(const StepResult& result);
  std::string spike_text(double loss) const;
  void warn_of_spike(double loss);
  void answer_spike(double loss, bool must);
  void answer(const Spike& spike, const std::string& text, bool must);
  void end_at_spike(const Spike& spike, const std::string& text, const std::string& reason);
  void roll_back(Spike spike, const std::string& text, bool must);
  bool step();
  int agreed_stop();
  bool agreed_save();
  std::string way_back() const;
  bool root() const { return mesh.world->rank() == 0; }

  SignalGuard signals;  // first: it also covers the set-up of the others
  Config config;
  Context context;
  Mesh mesh;
  std::unique_ptr<RunLock> lock;  // rank 0
  std::unique_ptr<Dataset> train_data, validation_data;
  std::unique_ptr<Learner> learner;
  std::unique_ptr<MetricsLog> metrics;  // rank 0
  ResumePlan start;                     // rank 0
  std::unique_ptr<CheckpointSaver> saver;
  TrainingState state;
  PeakRate matmul_peak;  // of all ranks
  LossWatch watch{config.model.vocab_size};
  bool in_spike = false;            // the last step's loss was one
  bool evaluation_missing = false;  // the one that is due after state.step
  double folder_seen = 0;           // when; rank 0
  DataState next_place;             // behind the data that were read last
  bool save_due = false;    // of these weights, as soon as the next step's forward has judged them
  double save_seconds = 0;  // spent on it inside of the step
  int64_t saved_step = -1;
  bool folder_lost = false;  // rank 0: the folder was deleted, and what was saved with it
};

Trainer::Impl::Impl(const Config& config_in, std::unique_ptr<Communicator> world)
    : config(config_in),
      context(make_context(*world, config_in.run.backend,
                           static_cast<int>(config_in.parallel.threads))),
      mesh(make_mesh_on_all(transport_of(context, std::move(world), config_in.parallel),
                            config_in.parallel)) {
  if (root()) signals.speak();
  run_on_root(*mesh.world, [&] {
    {
      // A folder that is not there yet is nobody's: its lock is taken without a wait.
      std::error_code error;
      const SignalGuard::Hold hold(!std::filesystem::exists(config.run.folder, error));
      lock = std::make_unique<RunLock>(config.run.folder);
      signals.remove_at_end(lock->path(), lock->folders_made());
    }
    remove_leftovers(config.run.folder);
  });
  run_on_all(*mesh.world, [&] {
    init_log(mesh.world->rank(), config.run.folder, config.run.log_level, LogStart::kHeld);
  });
  if (!plan_start()) {  // complete
    write_held_log();
    return;
  }
  train_data = open_dataset(*mesh.world, config, Split::kTrain);
  if (config.train.evaluate_every > 0)
    validation_data = open_dataset(*mesh.world, config, Split::kValidation);
  // Measured before the model allocates memory, on all ranks at once: each measures its share of a
  // host.
  mesh.world->barrier();
  std::array<double, 1> gflops{
      measure_machine(context, 0.3, float_type(config.run.dtype)).matmul_gflops};
  mesh.world->all_reduce_sum(gflops);
  matmul_peak = PeakRate(gflops[0]);
  learner = std::make_unique<Learner>(context, config, mesh);
  resume();
  run_on_root(*mesh.world, [&] {
    metrics = std::make_unique<MetricsLog>(config.run, RunPlace{state.step, state.rollbacks});
    describe();
  });
  warn_if_crowded(*mesh.world, context);
  write_held_log();
  signals.set_up_done();
}

bool Trainer::Impl::plan_start() {
  int64_t complete = 0;
  run_on_root(*mesh.world, [&] {
    start = plan_resume(config);
    // A signal may have ended its last evaluation.
    if (config.train.evaluate_every > 0 && lacks_evaluation(config.run, config.train.steps))
      start.complete = false;
    complete = start.complete ? 1 : 0;
    if (start.complete) log_info("{}", complete_text(start, config));
  });
  mesh.world->broadcast(&complete, sizeof complete, 0);
  return complete == 0;
}

void Trainer::Impl::resume() {
  learner->with_tensors_on_root([&](const TrainingTensors& tensors) {
    state = carry_out_resume(start, config, learner->layout(), tensors, *train_data);
  });
  share_state(*mesh.world, state);
  watch.restore(state.recent_losses);
  // A signal may have ended the run in an evaluation: it is made up for.
  std::array<int64_t, 2> found{
      start.checkpoint ? 1 : 0,
      root() && evaluation_due() && lacks_evaluation(config.run, state.step) ? 1 : 0};
  mesh.world->broadcast(found.data(), sizeof found, 0);
  evaluation_missing = found[1] != 0;
  if (found[0] == 0) {
    learner->initialise();
  } else {
    learner->broadcast_tensors();
    learner->parameters_changed();
    saved_step = state.step;
  }
  saver =
      std::make_unique<CheckpointSaver>(config, *mesh.world, *learner, good_start(start, config));
}

void Trainer::Impl::describe() {
  log_info("{}", train_data->description());
  if (validation_data) log_info("{}", validation_data->description());
  log_info(
      "model: {} parameters, {} layers, C {}, H {}, D {}; sequence of {} tokens over {} rank{} "
      "x {} replica{}, {} threads each, {}",
      learner->layout().parameter_count(), config.model.layers, config.model.dim,
      config.model.heads, config.model.head_dim(), config.train.sequence_length,
      mesh.sequence_ranks(), mesh.sequence_ranks() == 1 ? "" : "s", mesh.replicas,
      mesh.replicas == 1 ? "" : "s", context.threads(), isa_name(context.isa()));
  const int64_t warmup = warmup_steps_of(config.optimizer, config.train.steps);
  if (warmup != config.optimizer.warmup_steps)
    log_warn("optimizer.warmup_steps {} is above train.steps {}: warm-up is shortened to {} steps",
             config.optimizer.warmup_steps, config.train.steps, warmup);
  const SequencePlan& plan = learner->plan();
  for (size_t k = 0; k < plan.branches().size(); ++k) {
    const int branch = static_cast<int>(k);
    const auto gathered = plan.gathered_segments(branch);
    std::string text = fmt::format("{} local segments on rank 0", plan.local_segment_count(branch));
    for (const GatheredSegment& g : gathered)
      text += fmt::format(", one gathered over ranks {}..{}", g.first_rank, g.last_rank);
    log_info("branch {}:{}: {}", plan.branches()[k].segment_length, plan.branches()[k].dilation,
             text);
  }
  std::string memory;
  int64_t total = 0;
  for (const auto& [purpose, bytes] : learner->memory()) {
    memory += fmt::format("{}{} {}", memory.empty() ? "" : ", ", purpose, bytes_text(bytes));
    total += bytes;
  }
  log_info("memory of rank 0: {}; in all {}", memory, bytes_text(total));
  log_info("measured {} matmul peak of all ranks: {:.0f} GFLOP/s, the best of many products",
           config.run.dtype, matmul_peak.gflops());
}

/// This rank's samples of the micro-step at `place`, which moves behind it.
std::vector<int64_t> Trainer::Impl::next_samples(DataState& place) const {
  const int64_t per_replica = config.train.batch_size;
  std::vector<int64_t> mine;
  for (int64_t i = 0; i < per_replica * mesh.replicas; ++i) {
    if (i / per_replica == mesh.replica)
      mine.push_back(train_data->sample_index(place, config.train.seed, config.data.order));
    advance(place, train_data->samples());
  }
  return mine;
}

/// The data of the step at `place`, which moves behind it.
std::vector<MicroBatch> Trainer::Impl::read_step(DataState& place) {
  Range range(context, "data");
  std::vector<MicroBatch> batches;
  for (int64_t micro = 0; micro < config.train.accumulation; ++micro)
    batches.push_back(read_micro_batch(*train_data, learner->plan(), next_samples(place)));
  return batches;
}

void Trainer::Impl::report(const StepResult& result, double seconds, const Work& before,
                           const Traffic& traffic, int64_t gradient_bytes,
                           int64_t parameter_bytes) {
  const Work& work = context.work();
  const Traffic& sent = learner->traffic();
  std::array<double, 5> sums{
      work.matmul_flops + work.attention_flops - before.matmul_flops - before.attention_flops,
      static_cast<double>(sent.forward_bytes + sent.backward_bytes - traffic.forward_bytes -
                          traffic.backward_bytes),
      static_cast<double>(sent.forward_needed_bytes - traffic.forward_needed_bytes),
      static_cast<double>(learner->gradient_bytes_sent() - gradient_bytes),
      static_cast<double>(learner->parameter_bytes_sent() - parameter_bytes)};
  mesh.world->all_reduce_sum(sums);
  std::array<double, 1> memory{static_cast<double>(memory_in_use(context))};
  mesh.world->all_reduce_max(memory);
  if (!root()) return;
  StepMetrics m;
  m.step = state.step;
  m.steps = config.train.steps;
  m.loss = result.loss;
  m.bits_per_byte = bits_per_byte(result.loss, train_data->bytes_per_token());
  m.gradient_norm = result.gradient_norm;
  m.learning_rate = result.learning_rate;
  m.seconds = seconds;
  m.tokens_per_second = static_cast<double>(result.targets) / seconds;
  m.share_of_peak = matmul_peak.share(sums[0] / seconds / 1e9);
  m.exchanged_bytes = static_cast<int64_t>(sums[1]);
  m.needed_bytes = static_cast<int64_t>(sums[2]);
  m.gradient_bytes = static_cast<int64_t>(sums[3]);
  m.parameter_bytes = static_cast<int64_t>(sums[4]);
  m.memory_bytes = static_cast<int64_t>(memory[0]);
  metrics->step(m);
}

/// After state.step.
bool Trainer::Impl::evaluation_due() const {
  return validation_data &&
         (state.step % config.train.evaluate_every == 0 || state.step == config.train.steps);
}

/// False: these weights give no number, and training went back. A signal ends it without a result.
bool Trainer::Impl::evaluate() {
  bool stopped = false;
  evaluation_missing = false;
  LossSum loss;
  try {
    loss = evaluate_dataset(*learner, mesh, config, *validation_data, config.train.evaluate_samples,
                            [&] { return stopped = agreed_stop() != 0; });
  } catch (const AgreedError&) {  // the data cannot be read; the weights are as good as they were
    save(std::nullopt, false);
    throw;
  } catch (const NonFiniteError&) {  // on every rank
    if (config.train.on_spike != "rollback") throw;
    next_place = state.data;
    answer({.step = state.step,
            .loss = std::nan(""),
            .limit = watch.limit(),
            .action = config.train.on_spike},
           "the validation loss is not finite", false);
    return false;
  }
  evaluation_missing = stopped;
  if (root() && !stopped)
    metrics->evaluation(state.step, "validation", loss.mean(),
                        bits_per_byte(loss.mean(), validation_data->bytes_per_token()),
                        loss.targets);
  return true;
}

void Trainer::Impl::sample() {
  run_on_root(*mesh.world, [&] {
    metrics->sample(
        state.step,
        sample_text(context, config, learner->layout(), learner->parameters(),
                    config.train.sample_prompt, config.train.sample_tokens, 0.8, 40,
                    static_cast<uint64_t>(config.train.seed), [&] { return signals.stop() != 0; }));
  });
}

/// Mean loss of the weights as they are on the data of the next step. Collective.
double Trainer::Impl::loss_of_next() {
  LossSum sum;
  for (const MicroBatch& batch : next_batches()) {
    const LossSum part = learner->evaluate(batch);
    sum.nats += part.nats;
    sum.targets += part.targets;
  }
  return sum.mean();
}

/// Saves the weights as they are. loss: theirs on the data of the next step; nothing where these
/// cannot be read. Collective.
void Trainer::Impl::save(std::optional<double> loss, bool must) {
  save_due = false;
  if (saved_step == state.step) return;
  TrainingState to_save = state;
  to_save.loss = loss;
  to_save.spike = loss && watch.is_spike(*loss);
  to_save.recent_losses = watch.losses();
  if (has_sensible_loss(to_save, config.model.vocab_size)) to_save.rollbacks = 0;
  write_checkpoint(to_save, must);
}

void Trainer::Impl::write_checkpoint(const TrainingState& to_save, bool must) {
  const double start = seconds_now();
  Range range(context, "checkpoint");
  run_on_root(*mesh.world, [&] {
    keep_folder();
    metrics->finish_line();
  });
  if (saver->save(to_save, must)) {
    state = to_save;
    saved_step = state.step;
    folder_lost = false;
  }
  save_seconds += seconds_now() - start;
}

/// Saves without a next step, whose forward would judge the weights: one more forward does.
void Trainer::Impl::save_now(bool must) {
  if (saved_step == state.step) return;
  save_due = true;
  const double loss = loss_of_next();
  if (refuses(loss, 0)) return answer_spike(loss, must);
  save(loss, must);
}

/// " the last checkpoint is ...", for the end of a message.
std::string Trainer::Impl::way_back() const {
  const std::string& last = learner->last_checkpoint();
  return last.empty() ? "there is no checkpoint yet" : "the last checkpoint is " + last;
}

/// Rank 0: the folder may have been deleted, or taken by a start that believed this one dead.
void Trainer::Impl::keep_folder() {
  const RunLock::State found = lock->state();
  if (found == RunLock::State::kHeld) return;
  metrics->finish_line();
  if (found == RunLock::State::kTaken) {
    signals.remove_at_end("", 0);
    const std::string holder = lock->holder();
    throw Error(
        "run.folder {} now belongs to {}: this training ends at step {} and writes nothing more; "
        "to continue it, set another run.folder and checkpoint.resume to its last checkpoint",
        config.run.folder, holder.empty() ? "another process" : holder, state.step);
  }
  std::error_code ignored;
  const bool deleted = !std::filesystem::exists(config.run.folder, ignored);
  lock = std::make_unique<RunLock>(config.run.folder);
  signals.remove_at_end(lock->path(), lock->folders_made());
  if (!deleted)
    return log_warn("{} was deleted during the run; it has been created again", lock->path());
  init_log(0, config.run.folder, config.run.log_level);
  metrics = std::make_unique<MetricsLog>(config.run, RunPlace{state.step, state.rollbacks});
  saver->forget();
  folder_lost = true;  // all ranks hear of it in end_together()
  log_warn(
      "step {}: run.folder {} was deleted during the run and has been created again; its log, "
      "metrics and checkpoints so far are lost, the next checkpoint is complete",
      state.step, config.run.folder);
}

/// Throws on all ranks if any of them has a failure to report. The weights are saved first: the next
/// data cannot be read, they are as good as they were.
void Trainer::Impl::end_together(const std::string& failure) {
  std::array<double, 2> found{failure.empty() ? 0.0 : 1.0,
                              std::exchange(folder_lost, false) ? 1.0 : 0.0};
  mesh.world->all_reduce_max(found);
  if (found[1] != 0) saved_step = -1;
  if (found[0] == 0) return;
  if (save_due || state.step > std::max<int64_t>(saved_step, 0)) save(std::nullopt, false);
  run_on_all(*mesh.world, [&] {
    if (!failure.empty()) throw Error("{}; {}", failure, way_back());
  });
}

/// The next step's data, and a look at the folder: what may fail on one rank alone.
std::vector<MicroBatch> Trainer::Impl::next_batches() {
  std::vector<MicroBatch> batches;
  std::string failure;
  next_place = state.data;
  try {
    if (root() && seconds_now() - folder_seen > kFolderSeconds) {
      keep_folder();
      folder_seen = seconds_now();
    }
    batches = read_step(next_place);
  } catch (const std::exception& error) {
    failure = failure_text(error);
  }
  end_together(failure);
  return batches;
}

/// False: no step was done, training went back.
bool Trainer::Impl::step() {
  const double start = seconds_now();
  save_seconds = 0;
  const Work before = context.work();
  const Traffic traffic = learner->traffic();
  const int64_t gradient_bytes = learner->gradient_bytes_sent();
  const int64_t parameter_bytes = learner->parameter_bytes_sent();
  const std::vector<MicroBatch> batches = next_batches();
  const StepResult result = learner->train_step(
      batches, state.step + 1, [&](const StepResult& found) { return accept(found); });
  if (!result.updated) {
    answer_spike(result.loss, false);
    return false;
  }
  ++state.step;
  state.tokens_seen += result.targets;
  state.data = next_place;
  report(result, seconds_now() - start - save_seconds, before, traffic, gradient_bytes,
         parameter_bytes);
  warn_of_spike(result.loss);
  watch.add(result.loss);
  return true;
}

/// Before the update of a step, whose loss is that of the weights as they are: their checkpoint may
/// be due. Returns whether to update. The same on every rank, as loss and norm are.
bool Trainer::Impl::accept(const StepResult& result) {
  const bool refused = refuses(result.loss, result.gradient_norm);
  if (save_due && !refused && std::isfinite(result.loss)) save(result.loss, false);
  return !refused;
}

/// Whether train.on_spike forbids to train on. What is not finite ends the run by itself, but for
/// rollback.
bool Trainer::Impl::refuses(double loss, double norm) const {
  const std::string& action = config.train.on_spike;
  if (!std::isfinite(loss) || !std::isfinite(norm)) return action == "rollback";
  return action != "warn" && watch.is_spike(loss);
}

/// Beginning of a line about the loss of the step after the last one.
std::string Trainer::Impl::spike_text(double loss) const {
  const std::optional<double> median = watch.median();
  if (!watch.is_spike(loss)) return "the gradient is not finite";
  if (!std::isfinite(loss)) return fmt::format("the loss is {}", std::abs(loss));
  return fmt::format("the loss of {:.4g} nats is a spike: at most {:.4g} was expected{}", loss,
                     watch.limit(),
                     median ? fmt::format(" after a median of {:.4g}", *median) : "");
}

/// Says where the loss jumps: once for steps in a row. The step is done, its loss not yet in the
/// watch.
void Trainer::Impl::warn_of_spike(double loss) {
  const bool before = std::exchange(in_spike, watch.is_spike(loss));
  if (!in_spike || before || !root()) return;
  metrics->finish_line();
  metrics->spike({.step = state.step, .loss = loss, .limit = watch.limit(), .action = "warn"});
  log_warn(
      "step {}: {}; if it does not fall soon, lower optimizer.learning_rate and resume from an "
      "earlier checkpoint, or set train.on_spike=rollback to leave out the data of spikes; {}",
      state.step, spike_text(loss), way_back());
}

/// The weights stay as they are after state.step; the data up to next_place gave `loss`. must: the
/// run ends next. Collective.
void Trainer::Impl::answer_spike(double loss, bool must) {
  answer({.step = state.step + 1,
          .loss = loss,
          .limit = watch.limit(),
          .action = config.train.on_spike},
         spike_text(loss), must);
}

/// text: what was seen at spike.step.
void Trainer::Impl::answer(const Spike& spike, const std::string& text, bool must) {
  if (spike.action == "stop") return end_at_spike(spike, text, "train.on_spike is stop");
  const bool often = state.rollbacks >= config.train.max_rollbacks;
  int64_t stuck = often || saver->last_good().empty() ? 1 : 0;  // rank 0 knows
  mesh.world->broadcast(&stuck, sizeof stuck, 0);
  if (stuck == 0) return roll_back(spike, text, must);
  end_at_spike(spike, text,
               often ? fmt::format("training went back {} time{} (train.max_rollbacks) without "
                                   "reaching a new good checkpoint",
                                   state.rollbacks, state.rollbacks == 1 ? "" : "s")
                     : "train.on_spike is rollback, but there is no good checkpoint to go back to");
}

/// Saves what was reached, though not as good, and throws on all ranks.
void Trainer::Impl::end_at_spike(const Spike& spike, const std::string& text,
                                 const std::string& reason) {
  if (std::isfinite(spike.loss)) save(spike.loss, false);
  run_on_root(*mesh.world, [&] {
    metrics->finish_line();
    Spike ended = spike;
    ended.action = "stop";
    metrics->spike(ended);
    const std::string& good = saver->last_good();
    const std::string anew = good.empty() ? "none run.overwrite=true" : good;
    throw Error(
        "step {}: {}; {}: the run ends after step {}{}; {}; look at the data, set "
        "checkpoint.resume={} and a lower optimizer.learning_rate, or continue with "
        "train.on_spike={}",
        spike.step, text, reason, state.step,
        saved_step == state.step ? fmt::format(" (saved in {})", step_name(state.step)) : "",
        good.empty() ? "there is no good checkpoint"
                     : fmt::format("the last good checkpoint is {}", good),
        anew, config.train.on_spike == "stop" && !good.empty() ? "rollback or warn" : "warn");
  });
}

void Trainer::Impl::roll_back(Spike spike, const std::string& text, bool must) {
  spike.checkpoint = saver->last_good();
  run_on_root(*mesh.world, [&] {
    keep_folder();
    metrics->finish_line();
  });
  WentBack back;
  try {
    back = go_back(spike.checkpoint, state, next_place, config, *mesh.world, *learner);
    state = back.state;
    watch.restore(state.recent_losses);
    saved_step = -1;
    run_on_root(*mesh.world, [&] {
      metrics = std::make_unique<MetricsLog>(config.run, RunPlace{state.step, state.rollbacks});
    });
  } catch (const SilentError&) {
    throw;
  } catch (const AgreedError& failure) {
    throw AgreedError(
        "step {}: {}; training cannot go back to {}: {}; remove the cause and give the same "
        "command "
        "again, or add train.on_spike=warn",
        spike.step, text, spike.checkpoint, failure.what());
  }
  run_on_root(*mesh.world, [&] {
    spike.went_back = state.step;
    spike.rollbacks = state.rollbacks;
    spike.skipped = (state.data.epoch - back.place.epoch) * train_data->samples() +
                    state.data.next_sample - back.place.next_sample;
    metrics->spike(spike);
    log_warn(
        "step {}: {}; training goes back to {}, rollback {} of at most {} (train.max_rollbacks), "
        "and leaves out {} sequences{}{}",
        spike.step, text, spike.checkpoint, spike.rollbacks, config.train.max_rollbacks,
        spike.skipped, back.set_aside.empty() ? "" : "; ", back.set_aside);
  });
  // Under the same name, with the new place in the data: a later start does not repeat the old one.
  write_checkpoint(state, must);
  save_due = false;
  in_spike = false;
}

/// The signal that asked any rank for the end; 0: none. Collective.
int Trainer::Impl::agreed_stop() {
  std::array<double, 1> stop{static_cast<double>(signals.stop())};
  mesh.world->all_reduce_max(stop);
  return static_cast<int>(stop[0]);
}

bool Trainer::Impl::agreed_save() {
  std::array<double, 1> wanted{signals.take_save() ? 1.0 : 0.0};
  mesh.world->all_reduce_max(wanted);
  return wanted[0] > 0;
}

void Trainer::Impl::save_and_end(int signal) {
  save_now(true);
  if (!root()) return;
  metrics->finish_line();
  const bool anew = config.checkpoint.resume == "none";
  log_info("step {}: ended by {}; the same command continues from here{}", state.step,
           signal_name(signal),
           anew || config.run.overwrite
               ? fmt::format(", without {}{}", anew ? "checkpoint.resume=none " : "",
                             config.run.overwrite ? "run.overwrite=true" : "")
               : "");
}

void Trainer::Impl::run() {
  // No learner: complete from the start.
  while (learner && (state.step < config.train.steps || evaluation_missing)) {
    if (!evaluation_missing && !step()) continue;
    evaluation_missing = evaluation_due();
    const auto at_end = [&] { return state.step == config.train.steps && !evaluation_missing; };
    if (const int signal = agreed_stop(); signal != 0 && !at_end()) return save_and_end(signal);
    if (evaluation_missing && !evaluate()) continue;
    const auto due = [&](int64_t every) { return every > 0 && state.step % every == 0; };
    if (due(config.train.sample_every)) sample();
    if (const bool wanted = agreed_save(); wanted || state.step == config.train.steps)
      save_now(state.step == config.train.steps);
    else
      save_due = save_due || due(config.checkpoint.every);
    if (const int signal = agreed_stop(); signal != 0 && !at_end()) return save_and_end(signal);
  }
}

Trainer::Trainer(const Config& config, std::unique_ptr<Communicator> world)
    : impl_(std::make_unique<Impl>(config, std::move(world))) {}
Trainer::~Trainer() = default;
void Trainer::run() { impl_->run(); }

}  // namespace longnet
