// Which checkpoint a start takes, what it sets aside, and what it says: whole runs of a tiny model
// in this process, one after the other in one folder.
#include "train/resume.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "support/tiny_training.h"
#include "train/run_folder.h"
#include "train/trainer.h"

namespace longnet::test {
namespace {

namespace fs = std::filesystem;

class Resume : public ::testing::Test {
 protected:
  Resume() {
    config_.train.steps = 4;
    config_.checkpoint.every = 1;
  }
  /// Trains to `steps` with checkpoint.resume; returns what this start added to log.txt.
  std::string train(int64_t steps, const std::string& resume = "auto", bool overwrite = false) {
    Config config = config_;
    config.train.steps = steps;
    config.checkpoint.resume = resume;
    config.run.overwrite = overwrite;
    const size_t before = log().size();
    {
      Trainer trainer(config, make_single_communicator());
      trainer.run();
    }
    return log().substr(before);
  }
  std::string refusal(int64_t steps, const std::string& resume = "auto", bool overwrite = false) {
    try {
      train(steps, resume, overwrite);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
  std::string log() const {
    const std::string path = config_.run.folder + "/log.txt";
    return fs::exists(path) ? read_whole_file(path) : "";
  }
  std::string step(int64_t n) const { return config_.run.folder + "/" + step_name(n); }
  /// The steps in a folder's metrics.jsonl, in its order.
  static std::vector<int64_t> metric_steps(const std::string& folder) {
    std::istringstream lines(read_whole_file(folder + "/metrics.jsonl"));
    std::vector<int64_t> steps;
    for (std::string line; std::getline(lines, line);)
      steps.push_back(nlohmann::json::parse(line).at("step"));
    return steps;
  }
  std::vector<int64_t> checkpoints() const {
    std::vector<int64_t> steps;
    for (const auto& [step, path] : checkpoints_in(config_.run.folder)) steps.push_back(step);
    return steps;
  }
  using Steps = std::vector<int64_t>;

  TemporaryFolder folder_;
  Config config_ = tiny_training(folder_, repeated("the cat sat on the mat. "));
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST_F(Resume, GoingBackSetsTheLaterStepsAsideAndAutoFollowsTheNewBranch) {
  train(4);
  const std::string back = train(3, step(2));
  EXPECT_TRUE(contains(back, "resumed from " + step(2) + " at step 2")) << back;
  const std::string aside = config_.run.folder + "/set-aside-1";
  EXPECT_TRUE(contains(back, "set aside in " + aside + ": step-00000003, step-00000004")) << back;
  EXPECT_EQ(checkpoints(), (Steps{1, 2, 3}));
  EXPECT_TRUE(fs::exists(aside + "/step-00000004/state.json"));
  EXPECT_EQ(metric_steps(aside), (Steps{3, 4}));
  EXPECT_EQ(metric_steps(config_.run.folder), (Steps{1, 2, 3}));
  const std::string plain = train(5);
  EXPECT_TRUE(contains(plain, "resumed from " + step(3) + " at step 3")) << plain;
  EXPECT_EQ(metric_steps(config_.run.folder), (Steps{1, 2, 3, 4, 5})) << "no gap";
}

TEST_F(Resume, TheSameCommandAgainContinuesWhatItBegan) {
  train(4);
  train(3, step(2));
  EXPECT_TRUE(contains(train(4, step(2)), "resumed from " + step(3) + " at step 3"));
  EXPECT_FALSE(fs::exists(config_.run.folder + "/set-aside-2"));
  // keep_last has removed the checkpoint that the command names.
  config_.checkpoint.keep_last = 1;
  train(5, step(2));
  EXPECT_EQ(checkpoints(), (Steps{5}));
  EXPECT_TRUE(contains(train(6, step(2)), "resumed from " + step(5) + " at step 5"));
  EXPECT_TRUE(contains(refusal(6, step(1)), "no such checkpoint")) << "never begun from there";
  EXPECT_EQ(metric_steps(config_.run.folder), (Steps{1, 2, 3, 4, 5, 6}));
}

TEST_F(Resume, OverwriteBeginsAtTheNamedCheckpointAgain) {
  train(2);
  train(3, step(2));
  const std::string again = train(3, step(2), true);
  EXPECT_TRUE(contains(again, "resumed from " + step(2) + " at step 2")) << again;
  EXPECT_TRUE(fs::exists(config_.run.folder + "/set-aside-1/step-00000003"));
}

TEST_F(Resume, AnotherRunsCheckpointBeginsARunHere) {
  train(2);
  const std::string origin = step(2), first = config_.run.folder;
  config_.run.folder = folder_.file("second");
  train(1);
  const std::string fork = train(3, origin);
  EXPECT_TRUE(contains(fork, "resumed from " + origin + " at step 2")) << fork;
  EXPECT_TRUE(contains(fork, "set aside in ")) << fork;
  EXPECT_EQ(checkpoints(), (Steps{3}));
  EXPECT_EQ(metric_steps(config_.run.folder), (Steps{3}));
  EXPECT_TRUE(contains(train(4, origin), "resumed from " + step(3) + " at step 3"));
  fs::remove_all(first);
  EXPECT_TRUE(contains(train(5, origin), "resumed from " + step(4) + " at step 4"));
}

TEST_F(Resume, AFolderThatHoldsARunIsNotTrainedOver) {
  train(2, "none");
  const std::string text = refusal(2, "none");
  EXPECT_TRUE(contains(text, "holds a run")) << text;
  EXPECT_TRUE(contains(text, "run.overwrite=true")) << text;
  EXPECT_TRUE(contains(refusal(3, "auto", true), "run.overwrite=true needs"));
  EXPECT_EQ(checkpoints(), (Steps{1, 2}));
  const std::string anew = train(1, "none", true);
  EXPECT_TRUE(contains(anew, "set aside in ")) << anew;
  EXPECT_EQ(checkpoints(), (Steps{1}));
  EXPECT_EQ(metric_steps(config_.run.folder), (Steps{1}));
  EXPECT_EQ(metric_steps(config_.run.folder + "/set-aside-1"), (Steps{1, 2}));
}

TEST_F(Resume, AFinishedRunSaysSo) {
  train(2);
  fs::remove(config_.data.train[0]);  // nothing but the checkpoint is needed for that
  const std::string again = train(2);
  EXPECT_TRUE(contains(again, "already complete at step 2")) << again;
  EXPECT_TRUE(contains(again, "raise train.steps above 2")) << again;
  const std::string less = refusal(1);
  EXPECT_TRUE(contains(less, "is at step 2, train.steps is 1")) << less;
}

TEST_F(Resume, ChangedSettingsAreListed) {
  train(1);
  config_.optimizer.learning_rate = 0.5e-3;
  config_.optimizer.schedule = "cosine";
  config_.train.batch_size = 2;
  const std::string same_order = train(2);
  for (const char* line :
       {"optimizer.learning_rate: 0.001 -> 0.0005", "optimizer.schedule: polynomial -> cosine",
        "train.batch_size: 1 -> 2", "train.steps: 1 -> 2"})
    EXPECT_TRUE(contains(same_order, line)) << same_order;
  EXPECT_FALSE(contains(same_order, "starts anew")) << same_order;
  config_.train.seed = 9;
  const std::string other_order = train(3);
  EXPECT_TRUE(contains(other_order, "train.seed: 1 -> 9")) << other_order;
  EXPECT_TRUE(contains(other_order, "the order starts anew")) << other_order;
}

TEST_F(Resume, OtherDataMustBeAccepted) {
  train(1);
  // Moved, the same content.
  config_.data.train = {folder_.write("moved.txt", repeated("the cat sat on the mat. "))};
  const std::string moved = train(2);
  EXPECT_TRUE(contains(moved, "data.train: ")) << moved;
  EXPECT_FALSE(contains(moved, "starts anew")) << moved;
  folder_.write("moved.txt", repeated("the dog lay by the log. "));
  const std::string refused = refusal(3);
  EXPECT_TRUE(contains(refused, "holds other data than " + step(2))) << refused;
  EXPECT_TRUE(contains(refused, "checkpoint.accept_new_data=true")) << refused;
  config_.checkpoint.accept_new_data = true;
  EXPECT_TRUE(contains(train(3), "the order starts anew"));
  config_.checkpoint.accept_new_data = false;
  EXPECT_FALSE(contains(train(4), "starts anew")) << "from now on these are its data";
}

TEST_F(Resume, ANewestCheckpointThatCannotBeReadIsNotPassedOver) {
  train(3);
  fs::resize_file(step(3) + "/model.safetensors", 100);
  const std::string text = refusal(4);
  EXPECT_TRUE(contains(text, step(3) + "/model.safetensors: 100 bytes")) << text;
  EXPECT_TRUE(contains(text, "go back with checkpoint.resume=" + step(2))) << text;
  // The way out works, and the damaged one is out of the way afterwards.
  EXPECT_TRUE(contains(train(4, step(2)), "set aside"));
  EXPECT_TRUE(contains(train(5), "resumed from " + step(4)));
}

TEST_F(Resume, StatesRememberLossDataAndLineage) {
  train(2);
  train(3, step(1));
  const TrainingState state = peek_checkpoint(step(3)).state;
  EXPECT_EQ(state.seed, config_.train.seed);
  ASSERT_TRUE(state.loss);
  EXPECT_GT(*state.loss, 1);
  EXPECT_LT(*state.loss, largest_sensible_loss(256));
  EXPECT_EQ(state.training_data.files, 1);
  EXPECT_EQ(state.training_data.hash.size(), 16u);
  ASSERT_EQ(state.lineage.size(), 1u);
  EXPECT_EQ(state.lineage[0].checkpoint, "step-00000001");
  EXPECT_EQ(state.lineage[0].step, 1);
}

}  // namespace
}  // namespace longnet::test
