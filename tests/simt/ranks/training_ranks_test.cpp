// Training on the GPUs of several ranks, emulated: the golden trajectory with and without a sharded
// optimizer, and checkpoints of one. Collectives over the stand-in of NCCL, which adds in rank
// order, so both modes must give the same bits here.
#include <gtest/gtest.h>

#include <filesystem>

#include "core/host_copy.h"
#include "dist/communicator_nccl.h"
#include "simt/device_values.h"
#include "support/temporary_folder.h"
#include "support/training_case.h"
#include "train/checkpoint.h"

namespace longnet::simt_test {
namespace {

using test::golden_path;

/// A run on the golden data, over the GPUs of all ranks.
struct TrainingRun {
  TrainingRun(const std::string& optimizer, bool sharded)
      : file(golden_path("training-adamw")),
        config(test::training_config(file)),
        tokens(file.integers("tokens")) {
    config.optimizer.name = optimizer;
    config.parallel.shard_optimizer = sharded;
    config.run.backend = "cuda";
    config.run.attention = "plain";
    mesh = make_mesh(make_nccl_communicator(make_mpi_communicator(),
                                            {.compute = context.stream(), .device = kGpu}),
                     0, 1);
    learner = std::make_unique<Learner>(context, config, mesh);
    copy_from_host(context, learner->parameters(),
                   test::golden_parameters(file, learner->layout()).data());
    learner->parameters_changed();
  }
  void train(int64_t first, int64_t last) {
    for (int64_t step = first; step < last; ++step) {
      const MicroBatch batch = test::golden_batch(tokens, file.entry("tokens").shape, step, 0,
                                                  config.train.batch_size, learner->plan());
      results.push_back(learner->train_step({&batch, 1}, step + 1));
    }
  }
  std::vector<float> parameters() {
    std::vector<float> values(learner->layout().elements());
    copy_to_host(context, values.data(), learner->parameters());
    return values;
  }
  std::string save(const std::string& folder, int64_t step) {
    learner->with_tensors_on_root([&](const TrainingTensors& tensors) {
      save_checkpoint(folder, config, learner->layout(), tensors,
                      {.step = step, .tokens_seen = 0, .data = {}}, 0);
    });
    return folder + fmt::format("/step-{:08}", step);
  }
  void load(const std::string& path) {
    for (const ParameterInfo& info : learner->layout().parameters())  // padding stays zero
      copy_from_host(context, learner->parameters().slice(0, info.offset, info.elements),
                     std::vector<float>(info.elements, 7.0f).data());
    learner->with_tensors_on_root([&](const TrainingTensors& tensors) {
      load_tensors(open_checkpoint(path), learner->layout(), tensors);
    });
    learner->broadcast_tensors();
    learner->parameters_changed();
  }

  SafetensorsFile file;
  Config config;
  std::vector<int64_t> tokens;
  Context context = gpu_context();
  Mesh mesh;
  std::unique_ptr<Learner> learner;
  std::vector<StepResult> results;
};

TEST(TrainingRanks, FollowsTheGoldenTrajectoryWithAndWithoutShards) {
  TrainingRun whole("adamw", false), sharded("adamw", true);
  const std::vector<float> losses = whole.file.floats("losses");
  const std::vector<float> norms = whole.file.floats("grad_norms");
  const int64_t steps = std::min<int64_t>(whole.config.train.steps, 6);
  whole.train(0, steps);
  sharded.train(0, steps);
  double worst = 0;
  for (int64_t i = 0; i < steps; ++i) {
    const StepResult &a = whole.results[i], &b = sharded.results[i];
    EXPECT_NEAR(a.loss, losses[i], 1e-4) << "step " << i + 1;
    EXPECT_NEAR(a.gradient_norm, norms[i], 2e-4 * norms[i]) << "step " << i + 1;
    EXPECT_EQ(a.loss, b.loss) << "step " << i + 1;
    EXPECT_EQ(a.gradient_norm, b.gradient_norm) << "step " << i + 1;
    worst = std::max(worst, std::abs(a.loss - losses[i]));
  }
  EXPECT_EQ(whole.parameters(), sharded.parameters());
  const int ranks = whole.mesh.world->size();
  if (whole.mesh.world->rank() == 0)
    printf("  %lld steps on %d emulated GPUs: largest loss difference %.2g nats\n",
           static_cast<long long>(steps), ranks, worst);
  if (ranks == 1) return;
  const int64_t n = whole.learner->layout().elements();
  const ParameterRange own = sharded.learner->optimizer().range();
  EXPECT_LT(own.end - own.begin, n);
  EXPECT_GT(whole.learner->traffic().forward_bytes, 0);
  EXPECT_EQ(sharded.learner->parameter_bytes_sent(),
            steps * 4 * (ranks - 1) * (own.end - own.begin));
}

TEST(TrainingRanks, CheckpointsOfAShardedOptimizerResumeBitForBit) {
  const auto world = make_mpi_communicator();
  std::unique_ptr<test::TemporaryFolder> folder;
  if (world->rank() == 0) folder = std::make_unique<test::TemporaryFolder>();
  const std::string path = world->all_gather_strings(folder ? folder->path() : "")[0];
  TrainingRun straight("stable_adamw", true);
  straight.train(0, 2);
  const std::string saved = straight.save(path, 2);
  straight.train(2, 4);
  for (const bool sharded : {true, false}) {
    TrainingRun resumed("stable_adamw", sharded);
    resumed.load(saved);
    resumed.train(2, 4);
    for (int i = 0; i < 2; ++i) {
      EXPECT_EQ(resumed.results[i].loss, straight.results[i + 2].loss) << "sharded " << sharded;
      EXPECT_EQ(resumed.results[i].gradient_norm, straight.results[i + 2].gradient_norm);
    }
    EXPECT_EQ(resumed.parameters(), straight.parameters()) << "sharded " << sharded;
  }
  world->barrier();
}

}  // namespace
}  // namespace longnet::simt_test
