// See checkpoint_saver.h. Only rank 0 writes, so only it sees a failure; one number informs the
// others.
#include "train/checkpoint_saver.h"

#include <chrono>
#include <cmath>
#include <thread>

#include "core/log.h"

namespace longnet {
namespace {

constexpr int kAttempts = 2;
constexpr std::chrono::milliseconds kPause{200};  // long enough for a hiccup of a file server

}  // namespace

CheckpointSaver::CheckpointSaver(const Config& config, Communicator& world, Learner& learner,
                                 const std::string& good)
    : config_(config), world_(world), learner_(learner) {
  use(good);
}

void CheckpointSaver::use(const std::string& good) {
  good_ = good;
  learner_.set_last_checkpoint(good_);
}

std::string CheckpointSaver::last_good_text() const {
  return good_.empty() ? "there is no earlier checkpoint"
                       : fmt::format("the last good checkpoint is {}", good_);
}

bool CheckpointSaver::save(const TrainingState& state, bool must) {
  int64_t saved = 0;
  learner_.with_tensors_on_root([&](const TrainingTensors& tensors) {
    if (state.loss && !std::isfinite(*state.loss))
      throw Error("step {}: not saved: these weights give a loss of {}; {}", state.step,
                  std::abs(*state.loss), last_good_text());
    saved = save_on_root(tensors, state, must) ? 1 : 0;
  });
  world_.broadcast(&saved, sizeof saved, 0);
  if (saved == 0) return false;
  if (has_sensible_loss(state, config_.model.vocab_size)) {
    use(config_.run.folder + "/" + step_name(state.step));
  } else if (world_.rank() == 0) {
    log_warn(
        "step {}: these weights give a loss of {:.4g} nats, {}: the checkpoint does not count as "
        "good; {}",
        state.step, *state.loss,
        state.spike ? "a spike"
                    : fmt::format("far above guessing ({:.3g} nats)",
                                  std::log(static_cast<double>(config_.model.vocab_size))),
        last_good_text());
  }
  return true;
}

bool CheckpointSaver::save_on_root(const TrainingTensors& tensors, const TrainingState& state,
                                   bool must) {
  using Clock = std::chrono::steady_clock;
  std::string cause;
  for (int attempt = 1; attempt <= kAttempts; ++attempt) {
    const Clock::time_point start = Clock::now();
    try {
      const std::string path = save_checkpoint(config_.run.folder, config_, learner_.layout(),
                                               tensors, state, config_.checkpoint.keep_last);
      log_info("step {}: saved {} in {:.2f} s", state.step, path,
               std::chrono::duration<double>(Clock::now() - start).count());
      return true;
    } catch (const UnsavableError& error) {
      throw Error("step {}: not saved: {}; {}", state.step, error.what(), last_good_text());
    } catch (const std::exception& error) {
      cause = error.what();
      log_warn("step {}: attempt {} of {} to save failed: {}", state.step, attempt, kAttempts,
               cause);
    }
    if (attempt < kAttempts) std::this_thread::sleep_for(kPause);
  }
  ++failures_;
  if (must || config_.checkpoint.on_failure == "stop")
    throw Error("step {}: the checkpoint cannot be saved: {}; {}", state.step, cause,
                last_good_text());
  log_warn(
      "step {}: no checkpoint saved (failed saves so far: {}); training continues until the next "
      "save is due; {}",
      state.step, failures_, last_good_text());
  return false;
}

}  // namespace longnet
