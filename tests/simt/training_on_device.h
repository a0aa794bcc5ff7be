// A Learner on one rank, on the CPU or on GPU 0 (a real one or the emulator's), driven with the
// golden training data.
#pragma once

#include <string>
#include <vector>

#include "core/host_copy.h"
#include "support/training_case.h"
#include "train/checkpoint.h"

namespace longnet::test {

inline std::vector<float> host_values(Context& context, const TensorView& tensor) {
  std::vector<float> values(tensor.elements());
  copy_to_host(context, values.data(), tensor);
  return values;
}

struct TrainingOnDevice {
  TrainingOnDevice(Device device, const SafetensorsFile& file, const Config& config_in)
      : config(config_in),
        context({.device = device, .threads = 1, .counting = false}),
        mesh(make_mesh(make_single_communicator(), 0, 1)),
        learner(context, config, mesh),
        shape(file.entry("tokens").shape),
        tokens(file.integers("tokens")) {}

  /// The golden file's parameters.
  void start_from(const SafetensorsFile& file) {
    const std::vector<float> flat = golden_parameters(file, learner.layout());
    copy_from_host(context, learner.parameters(), flat.data());
    learner.parameters_changed();
  }
  MicroBatch batch(int64_t step) const {
    return golden_batch(tokens, shape, step % shape[0], 0, config.train.batch_size, learner.plan());
  }
  /// Steps first + 1 .. first + count.
  std::vector<StepResult> train(int64_t first, int64_t count) {
    std::vector<StepResult> results;
    for (int64_t step = first; step < first + count; ++step) {
      const MicroBatch data = batch(step);
      results.push_back(learner.train_step({&data, 1}, step + 1));
    }
    return results;
  }
  std::vector<float> parameters() { return host_values(context, learner.parameters()); }
  std::vector<float> gradients() { return host_values(context, learner.gradients()); }

  Config config;
  Context context;
  Mesh mesh;
  Learner learner;
  std::vector<int64_t> shape;  // [S, B, N + 1]
  std::vector<int64_t> tokens;
};

}  // namespace longnet::test
