// bf16 over ranks: P ranks give what one rank gives, to bf16 rounding (gathered keys are rounded
// once more than local ones), and every rank ends with the same weights. Run with 1, 2, 4 and 8
// ranks.
#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/training_case.h"

namespace longnet::test {
namespace {

/// Losses and final parameters of six steps of the golden training case.
std::pair<std::vector<double>, std::vector<float>> run(std::unique_ptr<Communicator> world,
                                                       const std::string& dtype) {
  const SafetensorsFile file(golden_path("training-adamw"));
  Config config = training_config(file);
  config.run.dtype = dtype;
  Mesh mesh = make_mesh(std::move(world), 0, 1);
  Context context;
  Learner learner(context, config, mesh);
  set_parameters(learner, file);
  std::vector<double> losses;
  for (int64_t step = 0; step < 6; ++step) {
    const MicroBatch batch = golden_batch(file.integers("tokens"), file.entry("tokens").shape, step,
                                          0, config.train.batch_size, learner.plan());
    losses.push_back(learner.train_step({&batch, 1}, step + 1).loss);
  }
  const float* values = learner.parameters().f32();
  return {losses, std::vector<float>(values, values + learner.layout().elements())};
}

TEST(Bf16, RanksAgreeToBf16Rounding) {
  const auto one = run(make_single_communicator(), "bf16");
  const auto many = run(make_mpi_communicator(), "bf16");
  const auto exact = run(make_single_communicator(), "f32");
  double between = 0, rounding = 0;
  for (size_t i = 0; i < one.first.size(); ++i) {
    between = std::max(between, std::abs(many.first[i] - one.first[i]));
    rounding = std::max(rounding, std::abs(one.first[i] - exact.first[i]));
  }
  // Rank counts matter no more than bf16 itself does, with room for the luck of few steps.
  EXPECT_LE(between, 3 * rounding);
  EXPECT_GT(rounding, 0);
  const auto world = make_mpi_communicator();
  if (world->rank() == 0)
    printf("  %d ranks: %.2g nats from one rank, which is %.2g from float32\n", world->size(),
           between, rounding);
  double sum = 0;
  for (size_t i = 0; i < many.second.size(); ++i) sum += many.second[i] * double(i % 1013);
  std::array<double, 2> extremes{sum, -sum};
  world->all_reduce_max(extremes);
  EXPECT_EQ(extremes[0], -extremes[1]);
}

}  // namespace
}  // namespace longnet::test
