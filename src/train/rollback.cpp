// See rollback.h.
#include "train/rollback.h"

#include <array>

#include "train/checkpoint.h"
#include "train/run_folder.h"

namespace longnet {

void share_state(Communicator& world, TrainingState& state) {
  std::array<int64_t, 6> numbers{
      state.step,       state.tokens_seen,
      state.data.epoch, state.data.next_sample,
      state.rollbacks,  static_cast<int64_t>(state.recent_losses.size())};
  world.broadcast(numbers.data(), sizeof numbers, 0);
  state.step = numbers[0];
  state.tokens_seen = numbers[1];
  state.data = {numbers[2], numbers[3]};
  state.rollbacks = numbers[4];
  state.recent_losses.resize(static_cast<size_t>(numbers[5]));
  const auto bytes = static_cast<int64_t>(state.recent_losses.size() * sizeof(double));
  if (bytes > 0) world.broadcast(state.recent_losses.data(), bytes, 0);
}

WentBack go_back(const std::string& checkpoint, const TrainingState& now, const DataState& place,
                 const Config& config, Communicator& world, Learner& learner) {
  WentBack back;
  back.state = now;
  learner.with_tensors_on_root([&](const TrainingTensors& tensors) {
    const Checkpoint target = open_checkpoint(checkpoint);
    load_tensors(target, learner.layout(), tensors);
    const std::string& folder = config.run.folder;
    const bool own = same_folder(split_path(checkpoint).first, folder);
    back.set_aside = set_aside(folder, own ? target.state.step : -1, Aside::kMetricsAlone);
    back.place = target.state.data;
    // Lineage and training data are of the run that goes back.
    back.state.step = target.state.step;
    back.state.tokens_seen = target.state.tokens_seen;
    back.state.loss = target.state.loss;
    back.state.spike = target.state.spike;
    back.state.recent_losses = target.state.recent_losses;
    back.state.data = place;
    ++back.state.rollbacks;
  });
  learner.broadcast_tensors();
  learner.parameters_changed();
  share_state(world, back.state);
  return back;
}

}  // namespace longnet
