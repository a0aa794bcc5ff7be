// evaluate_dataset: weights that give no number end it; a request to stop ends it early.
#include <gtest/gtest.h>

#include <limits>

#include "support/tiny_training.h"
#include "train/trainer.h"

namespace longnet::test {
namespace {

class Evaluate : public ::testing::Test {
 protected:
  Evaluate() {
    mesh_ = make_mesh(make_single_communicator(), 0, 1);
    learner_ = std::make_unique<Learner>(context_, config_, mesh_);
    learner_->initialise();
    dataset_ = open_dataset(*mesh_.world, config_, Split::kTrain);
  }

  TemporaryFolder folder_;
  Config config_ = tiny_training(folder_);
  Context context_;
  Mesh mesh_;
  std::unique_ptr<Learner> learner_;
  std::unique_ptr<Dataset> dataset_;
};

TEST_F(Evaluate, ALossThatIsNoNumberIsAnError) {
  EXPECT_NEAR(evaluate_dataset(*learner_, mesh_, config_, *dataset_, 4).mean(), 5.6, 0.5);
  learner_->parameters().f32()[learner_->layout().parameters()[0].offset] =
      std::numeric_limits<float>::quiet_NaN();
  learner_->parameters_changed();
  EXPECT_THROW(evaluate_dataset(*learner_, mesh_, config_, *dataset_, 0), NonFiniteError);
}

TEST_F(Evaluate, ARequestToStopEndsItAfterABatch) {
  int asked = 0;
  const LossSum loss =
      evaluate_dataset(*learner_, mesh_, config_, *dataset_, 0, [&] { return ++asked == 2; });
  EXPECT_EQ(asked, 2);
  EXPECT_EQ(loss.targets, 2 * 64);
}

}  // namespace
}  // namespace longnet::test
