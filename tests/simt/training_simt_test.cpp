// The whole Learner on the CUDA kernels under the emulator: its orchestration is the GPU's, its
// matrix products and cuDNN's attention are stand-ins. "Short" cases run under ASan too.
#include <gtest/gtest.h>

#include "model/generation.h"
#include "simt/device_runtime_emulated.h"
#include "simt/device_values.h"
#include "simt/training_on_device.h"
#include "support/compare.h"
#include "support/temporary_folder.h"
#include "train/trainer.h"

namespace longnet::simt_test {
namespace {

using test::golden_path;
using test::training_config;
using test::TrainingOnDevice;

const char* kGolden = "training-adamw";

Config golden_config(const SafetensorsFile& file, const std::string& dtype = "f32") {
  Config config = training_config(file);
  config.run.dtype = dtype;
  return config;
}

TEST(TrainingSimt, FollowsTheGoldenTrajectory) {
  const SafetensorsFile file(golden_path(kGolden));
  Config config = golden_config(file);
  config.run.attention = "plain";
  TrainingOnDevice gpu(kGpu, file, config);
  gpu.start_from(file);
  const std::vector<float> losses = file.floats("losses"), norms = file.floats("grad_norms");
  const std::vector<StepResult> results = gpu.train(0, config.train.steps);
  double worst = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    EXPECT_NEAR(results[i].loss, losses[i], 1e-4) << "step " << i + 1;
    EXPECT_NEAR(results[i].gradient_norm, norms[i], 2e-4 * norms[i]) << "step " << i + 1;
    worst = std::max(worst, std::abs(results[i].loss - losses[i]));
  }
  printf("  %zu steps on the emulated GPU: largest loss difference %.2g nats\n", results.size(),
         worst);
}

}  // namespace
}  // namespace longnet::simt_test
