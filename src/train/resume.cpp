// See resume.h.
#include "train/resume.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "core/config_keys.h"
#include "core/log.h"
#include "train/run_folder.h"

namespace longnet {
namespace {

namespace fs = std::filesystem;

/// How states name the checkpoint at `path`; step and id are left at 0.
Origin name_of(const std::string& path, const Config& config) {
  const auto [folder, name] = split_path(path);
  if (same_folder(folder, config.run.folder)) return {name, 0, 0};
  std::error_code error;
  const fs::path whole = fs::weakly_canonical(folder + "/" + name, error);
  return {error ? path : whole.string(), 0, 0};
}

/// The newest checkpoint in run.folder that belongs to the branch which an earlier start with this
/// path began. A state that cannot be read belongs to none.
std::optional<std::string> begun_by(const Origin& origin, const Config& config) {
  const auto all = checkpoints_in(config.run.folder);
  for (auto at = all.rbegin(); at != all.rend(); ++at) {
    try {
      const TrainingState state = peek_checkpoint(at->second).state;
      if (state.lineage.empty()) return std::nullopt;
      const Origin& last = state.lineage.back();
      // Without an id the checkpoint itself is gone, and its name must do.
      const bool same = origin.id != 0 ? last.id == origin.id && last.step == origin.step
                                       : last.checkpoint == origin.checkpoint;
      return same ? std::optional(at->second) : std::nullopt;
    } catch (const Error& error) {
      log_warn("{} is skipped: {}", at->second, error.what());
    }
  }
  return std::nullopt;
}

ResumePlan plan_from_path(const Config& config) {
  ResumePlan plan;
  const std::string& path = config.checkpoint.resume;
  Origin origin = name_of(path, config);
  std::error_code ignored;
  const bool there = fs::exists(path, ignored);
  if (there) {
    try {
      const Checkpoint chosen = peek_checkpoint(path);
      origin.step = chosen.state.step;
      origin.id = chosen.id;
      // A rollback writes the checkpoint anew, within the branch that began at the old one.
      if (const auto& lineage = chosen.state.lineage;
          !lineage.empty() && lineage.back().checkpoint == origin.checkpoint &&
          lineage.back().step == origin.step)
        origin.id = lineage.back().id;
    } catch (const Error&) {
      open_checkpoint(path);  // says what is wrong and the way out
      throw;
    }
  }
  const auto begun = config.run.overwrite ? std::nullopt : begun_by(origin, config);
  plan.checkpoint = open_checkpoint(begun.value_or(path));
  if (!begun) plan.branch = origin;
  if (begun)
    log_info(
        "checkpoint.resume={} was used before: the run continues from {}; to begin at that "
        "checkpoint again, add run.overwrite=true",
        path, *begun);
  return plan;
}

ResumePlan plan_anew(const Config& config) {
  const bool old = holds_run(config.run.folder);
  if (old && !config.run.overwrite)
    throw Error(
        "{} holds a run, and checkpoint.resume is none; choose another run.folder, or set "
        "checkpoint.resume=auto to continue that run, or run.overwrite=true to set it aside",
        config.run.folder);
  ResumePlan plan;
  plan.anew = old;
  return plan;
}

ResumePlan plan_latest(const Config& config) {
  const auto latest = latest_checkpoint(config.run.folder);
  if (latest && config.run.overwrite)
    throw Error(
        "run.overwrite=true needs checkpoint.resume=none or a path; checkpoint.resume=auto "
        "continues the run in {}; remove one of the two",
        config.run.folder);
  ResumePlan plan;
  if (latest) plan.checkpoint = open_checkpoint(*latest);
  return plan;
}

/// Settings that change neither the numbers of a step nor their order.
bool matters(const internal::Key& key) {
  static constexpr std::array kWithout{
      "data.cache",           "data.bytes_per_token",   "train.recompute",
      "train.evaluate_every", "train.evaluate_samples", "train.sample_every",
      "train.sample_prompt",  "train.sample_tokens",    "train.on_spike",
      "train.max_rollbacks"};
  static constexpr std::array kBeside{"parallel.data_ranks", "run.backend", "run.attention",
                                      "run.dtype"};
  if (std::find(kBeside.begin(), kBeside.end(), key.name) != kBeside.end()) return true;
  const std::string section = key.section();
  return (section == "data" || section == "train" || section == "optimizer") &&
         std::find(kWithout.begin(), kWithout.end(), key.name) == kWithout.end();
}

void log_changes(const Config& was, const Config& is) {
  for (const internal::Key& key : internal::keys())
    if (matters(key) && key.print(was) != key.print(is))
      log_warn("changed since the checkpoint: {}: {} -> {}", key.name, key.print(was),
               key.print(is));
}

/// True if sample after sample holds other tokens than before: the place in the order means
/// nothing.
bool order_changed(const Config& was, const Config& is, bool same_content) {
  DataConfig old = was.data;
  old.cache = is.data.cache;
  old.bytes_per_token = is.data.bytes_per_token;
  if (same_content) old.train = is.data.train;  // moved or renamed
  return was.train.sequence_length != is.train.sequence_length || was.train.seed != is.train.seed ||
         !(old == is.data);
}

void warn_of_loss(const ResumePlan& plan, const Config& config) {
  const TrainingState& state = plan.checkpoint->state;
  if (has_sensible_loss(state, config.model.vocab_size)) return;
  const std::string good = good_start(plan, config);
  log_warn("the weights of {} give a loss of {:.4g} nats, {}; {}", plan.checkpoint->path,
           state.loss.value_or(0),
           state.spike ? "a spike when they were saved" : "far above guessing",
           good.empty() ? "there is no good checkpoint before it"
                        : fmt::format("go back with checkpoint.resume={}", good));
}

/// The state of the checkpoint, at the place in the data where this run continues.
TrainingState continued_state(const Checkpoint& checkpoint, const Config& config,
                              const Dataset& data) {
  TrainingState state = checkpoint.state;
  const DataFingerprint was = state.training_data, is = data.fingerprint();
  const bool known = !was.hash.empty(), same = known && was == is;
  if (known && !same && !config.checkpoint.accept_new_data)
    throw Error(
        "data.train holds other data than {} was trained on: files {}, bytes {}, hash {} -> files "
        "{}, bytes {}, hash {}; restore the old data, or set checkpoint.accept_new_data=true to "
        "train on these",
        checkpoint.path, was.files, was.bytes, was.hash, is.files, is.bytes, is.hash);
  log_changes(checkpoint.config, config);
  if (known && !same)
    log_warn("changed since the checkpoint: content of data.train: hash {} -> {}", was.hash,
             is.hash);
  // Data shorter than the place reached are not the same data, whatever the settings.
  const bool anew = (known && !same) || order_changed(checkpoint.config, config, same) ||
                    state.data.next_sample >= data.samples();
  if (anew) {
    log_warn("the data or its order differ from the checkpoint's: the order starts anew");
    state.data = {state.data.epoch + 1, 0};
    if (!same) state.recent_losses.clear();  // say nothing of what is expected now
  }
  return state;
}

}  // namespace

ResumePlan plan_resume(const Config& config) {
  const std::string& resume = config.checkpoint.resume;
  ResumePlan plan = resume == "none"   ? plan_anew(config)
                    : resume == "auto" ? plan_latest(config)
                                       : plan_from_path(config);
  if (!plan.checkpoint) return plan;
  check_same_model(*plan.checkpoint, config.model);
  const int64_t step = plan.checkpoint->state.step;
  if (step > config.train.steps)
    throw Error(
        "{} is at step {}, train.steps is {}; raise train.steps, choose another run.folder, or set "
        "checkpoint.resume=none run.overwrite=true to start anew",
        plan.checkpoint->path, step, config.train.steps);
  plan.complete = step == config.train.steps;
  return plan;
}

std::string good_start(const ResumePlan& plan, const Config& config) {
  if (!plan.checkpoint) return "";
  const Checkpoint& start = *plan.checkpoint;
  if (has_sensible_loss(start.state, config.model.vocab_size)) return start.path;
  return last_good_checkpoint(split_path(start.path).first, start.state.step).value_or("");
}

std::string complete_text(const ResumePlan& plan, const Config& config) {
  return fmt::format(
      "already complete at step {}: {}; to continue, raise train.steps above {}; to train anew, "
      "choose another run.folder or set checkpoint.resume=none run.overwrite=true",
      config.train.steps, plan.checkpoint->path, config.train.steps);
}

TrainingState carry_out_resume(const ResumePlan& plan, const Config& config,
                               const ParameterLayout& layout, const TrainingTensors& tensors,
                               const Dataset& data) {
  const std::string& folder = config.run.folder;
  TrainingState state;
  std::string moved;
  if (plan.checkpoint) {
    state = continued_state(*plan.checkpoint, config, data);
    load_tensors(*plan.checkpoint, layout, tensors);
    const std::string home = split_path(plan.checkpoint->path).first;
    moved = set_aside(folder, same_folder(home, folder) ? state.step : -1);
    if (plan.branch) state.lineage.push_back(*plan.branch);
    log_info("resumed from {} at step {}", plan.checkpoint->path, state.step);
    warn_of_loss(plan, config);
  } else if (plan.anew) {
    moved = set_aside(folder, -1);
  }
  if (!moved.empty()) log_warn("{}", moved);
  state.training_data = data.fingerprint();
  return state;
}

}  // namespace longnet
