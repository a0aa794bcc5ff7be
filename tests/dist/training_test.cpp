// Training on P ranks: the golden trajectory, meshes of sequence and data ranks, accumulation, and
// the stop at numbers that are not finite. Run with 1, 2, 4 and 8 ranks.
#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/training_case.h"

namespace longnet::test {
namespace {

const char* kGolden = "training-adamw";

TEST(Training, FollowsTheGoldenTrajectory) {
  const SafetensorsFile file(golden_path(kGolden));
  const Config config = training_config(file);
  Mesh mesh = make_mesh(make_mpi_communicator(), 0, 1);
  Context context;
  Learner learner(context, config, mesh);
  set_parameters(learner, file);
  const std::vector<int64_t> tokens = file.integers("tokens");
  const std::vector<float> losses = file.floats("losses"), norms = file.floats("grad_norms");
  double worst = 0;
  for (int64_t step = 0; step < config.train.steps; ++step) {
    const MicroBatch batch = golden_batch(tokens, file.entry("tokens").shape, step, 0,
                                          config.train.batch_size, learner.plan());
    const StepResult result = learner.train_step({&batch, 1}, step + 1);
    EXPECT_NEAR(result.loss, losses[step], 1e-4) << "step " << step + 1;
    EXPECT_NEAR(result.gradient_norm, norms[step], 2e-4 * norms[step]) << "step " << step + 1;
    worst = std::max(worst, std::abs(result.loss - losses[step]));
  }
  if (mesh.world->rank() == 0)
    printf("  %lld steps on %d ranks: largest loss difference %.2g nats\n",
           static_cast<long long>(config.train.steps), mesh.world->size(), worst);
}

/// The first steps of the golden data on a mesh; losses and the final parameters.
std::pair<std::vector<double>, std::vector<float>> run_mesh(int64_t sequence_ranks,
                                                            int64_t data_ranks,
                                                            int64_t accumulation,
                                                            const std::string& optimizer,
                                                            const std::string& recompute = "none") {
  const SafetensorsFile file(golden_path(kGolden));
  Config config = training_config(file);
  const int64_t all = config.train.batch_size;  // 2 sequences a step
  config.train.batch_size = all / data_ranks / accumulation;
  config.train.accumulation = accumulation;
  config.optimizer.name = optimizer;
  config.train.recompute = recompute;
  Mesh mesh = make_mesh(make_mpi_communicator(), sequence_ranks, data_ranks);
  Context context;
  Learner learner(context, config, mesh);
  set_parameters(learner, file);
  const std::vector<int64_t> tokens = file.integers("tokens");
  std::vector<double> losses;
  for (int64_t step = 0; step < 6; ++step) {
    std::vector<MicroBatch> batches;
    for (int64_t micro = 0; micro < accumulation; ++micro)
      batches.push_back(golden_batch(tokens, file.entry("tokens").shape, step,
                                     (micro * data_ranks + mesh.replica) * config.train.batch_size,
                                     config.train.batch_size, learner.plan()));
    losses.push_back(learner.train_step(batches, step + 1).loss);
  }
  const float* values = learner.parameters().f32();
  return {losses, std::vector<float>(values, values + learner.layout().elements())};
}

TEST(Training, MeshAndAccumulationChangeNothing) {
  for (const char* optimizer : {"adamw", "stable_adamw"}) {
    const auto expected = run_mesh(0, 1, 1, optimizer);
    const auto accumulated = run_mesh(0, 1, 2, optimizer);
    for (size_t i = 0; i < expected.first.size(); ++i)
      EXPECT_NEAR(accumulated.first[i], expected.first[i], 2e-5) << optimizer << " step " << i;
    if (make_mpi_communicator()->size() % 2 != 0) continue;
    const auto mesh = run_mesh(0, 2, 1, optimizer);  // P / 2 x 2
    for (size_t i = 0; i < expected.first.size(); ++i)
      EXPECT_NEAR(mesh.first[i], expected.first[i], 2e-5) << optimizer << " step " << i;
  }
}

TEST(Training, RepeatsBitForBitAndRanksAgree) {
  const auto first = run_mesh(0, 1, 1, "adamw"), second = run_mesh(0, 1, 1, "adamw");
  EXPECT_EQ(first.first, second.first);
  EXPECT_EQ(first.second, second.second);
  // The largest and the smallest value of a fingerprint over ranks are the same bits.
  const auto world = make_mpi_communicator();
  double sum = 0;
  for (size_t i = 0; i < first.second.size(); ++i) sum += first.second[i] * double(i % 1013);
  std::array<double, 2> extremes{sum, -sum};
  world->all_reduce_max(extremes);
  EXPECT_EQ(extremes[0], -extremes[1]);
}

TEST(Training, RecomputationChangesNoBit) {
  const auto kept = run_mesh(0, 1, 2, "adamw"), again = run_mesh(0, 1, 2, "adamw", "layer");
  EXPECT_EQ(kept.first, again.first);
  EXPECT_EQ(kept.second, again.second);
}

TEST(Training, StopsEverywhereBeforeTheWeightsChange) {
  const SafetensorsFile file(golden_path(kGolden));
  const Config config = training_config(file);
  Mesh mesh = make_mesh(make_mpi_communicator(), 0, 1);
  Context context;
  Learner learner(context, config, mesh);
  set_parameters(learner, file);
  learner.set_last_checkpoint("runs/x/step-00000007");
  learner.parameters().f32()[learner.layout().find("layers.0.ffn.fc1.weight").offset] = NAN;
  const float* values = learner.parameters().f32();
  const std::vector<float> before(values, values + learner.layout().elements());
  const MicroBatch batch = golden_batch(file.integers("tokens"), file.entry("tokens").shape, 0, 0,
                                        config.train.batch_size, learner.plan());
  try {
    learner.train_step({&batch, 1}, 9);
    FAIL() << "did not stop";
  } catch (const NonFiniteError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("step 9"), std::string::npos) << text;
    EXPECT_NE(text.find("runs/x/step-00000007"), std::string::npos) << text;
  }
  EXPECT_EQ(std::memcmp(before.data(), values, before.size() * sizeof(float)), 0);
}

TEST(Training, IgnoredTargetsDoNotCount) {
  const SafetensorsFile file(golden_path(kGolden));
  const Config config = training_config(file);
  Mesh mesh = make_mesh(make_mpi_communicator(), 0, 1);
  Context context;
  Learner learner(context, config, mesh);
  set_parameters(learner, file);
  MicroBatch batch = golden_batch(file.integers("tokens"), file.entry("tokens").shape, 0, 0,
                                  config.train.batch_size, learner.plan());
  const LossSum all = learner.evaluate(batch);
  EXPECT_EQ(all.targets, config.train.batch_size * config.train.sequence_length);
  // The rank that holds the first token ignores it; the count is over all ranks.
  if (learner.plan().local_begin() == 0) batch.targets[0] = -1;
  const LossSum fewer = learner.evaluate(batch);
  EXPECT_EQ(fewer.targets, all.targets - 1);
  EXPECT_LT(fewer.nats, all.nats);
}

}  // namespace
}  // namespace longnet::test
