// Signals to a training run: SIGUSR1 saves and continues; SIGINT, SIGTERM, SIGHUP and SIGUSR2 save
// and end, from the moment the Trainer exists. Sent to itself, so that each arrives at a known
// place. During set-up, a second time, and under mpirun: tests/cli/run_folder_test.cpp.
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>

#include "support/tiny_training.h"
#include "train/checkpoint.h"
#include "train/trainer.h"

namespace longnet::test {
namespace {

namespace fs = std::filesystem;

class Signal : public ::testing::Test {
 protected:
  bool saved(int step) const {
    return fs::exists(config_.run.folder + "/step-0000000" + std::to_string(step));
  }
  /// Trains with a signal sent between set-up and the first step (0: none).
  void train(int signal) {
    Trainer trainer(config_, make_single_communicator());
    if (signal != 0) std::raise(signal);
    trainer.run();
  }

  TemporaryFolder folder_;
  Config config_ = tiny_training(folder_);
};

TEST_F(Signal, Usr1SavesOnceAndTrainingContinues) {
  train(SIGUSR1);
  EXPECT_TRUE(saved(1));
  EXPECT_FALSE(saved(2));
  EXPECT_TRUE(saved(3));
}

TEST_F(Signal, EveryRequestToEndSavesAndTheNextRunContinues) {
  const std::string folder = config_.run.folder;
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR2}) {
    config_.run.folder = folder + std::to_string(signal);
    train(signal);
    EXPECT_TRUE(saved(1)) << signal;
    EXPECT_FALSE(saved(3)) << signal;
  }
  train(0);
  EXPECT_FALSE(saved(2));
  EXPECT_TRUE(saved(3));
}

TEST_F(Signal, AHangUpThatIsIgnoredAtTheStartStaysIgnored) {
  const auto before = std::signal(SIGHUP, SIG_IGN);
  train(SIGHUP);
  EXPECT_EQ(std::signal(SIGHUP, before), SIG_IGN);
  EXPECT_FALSE(saved(1));
  EXPECT_TRUE(saved(3));
}

TEST_F(Signal, TheSameSignalTwiceAtOnceCountsOnce) {
  Trainer trainer(config_, make_single_communicator());
  std::raise(SIGTERM);
  std::raise(SIGTERM);  // `timeout` sends it to the process and to its group
  trainer.run();
  EXPECT_TRUE(saved(1));
  EXPECT_FALSE(saved(3));
}

TEST_F(Signal, HandlersAreGivenBack) {
  const auto before = std::signal(SIGUSR1, SIG_IGN);
  train(0);
  EXPECT_EQ(std::signal(SIGUSR1, before), SIG_IGN);
}

}  // namespace
}  // namespace longnet::test
