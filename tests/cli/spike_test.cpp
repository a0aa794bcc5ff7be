// train.on_spike: a text with a stretch of noise, trained on until it is foreseen well, so that the
// noise is a real spike. What each setting does there, on one rank and on two with a divided
// optimizer, after a resume, and where there is no end to it.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <random>
#include <sstream>

#include "cli/program.h"

namespace longnet::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int kLength = 64;

std::string noise(int bytes) {
  std::mt19937 random(5);
  std::string text;
  for (int i = 0; i < bytes; ++i) text += static_cast<char>(random() % 256);
  return text;
}

class Spike : public testing::Test {
 protected:
  /// `clean` sequences of text, then `spoilt` ones of noise, then text: one sequence a step, in
  /// order.
  void write(int clean, int spoilt) {
    const auto text = [](int sequences) {
      std::string line;
      while (static_cast<int>(line.size()) < sequences * kLength) line += "abcdefgh";
      return line;
    };
    program.folder().write("text.txt", text(clean) + noise(spoilt * kLength) + text(400));
    program.folder().write(
        "spike.yaml",
        "model: {dim: 32, layers: 1, heads: 2, ffn_dim: 32, branches: [[16, 1], [64, 4]]}\n"
        "data: {train: text.txt, cache: cache, format: bytes, order: sequential}\n"
        "train: {sequence_length: 64, steps: 100, evaluate_every: 0, on_spike: rollback}\n"
        "optimizer: {warmup_steps: 1, schedule: constant, learning_rate: 0.01}\n"
        "checkpoint: {every: 20, keep_last: 0}\n"
        "run: {folder: run, progress: \"off\"}\n");
  }
  Outcome train(const std::string& settings = "", int ranks = 1) {
    return program.run("train spike.yaml " + settings, ranks);
  }
  std::vector<Json> metrics(const std::string& folder) {
    std::istringstream lines(read_whole_file(program.file(folder + "/metrics.jsonl")));
    std::vector<Json> all;
    for (std::string line; std::getline(lines, line);) all.push_back(Json::parse(line));
    return all;
  }
  std::vector<Json> spikes(const std::string& folder) {
    std::vector<Json> found;
    for (const Json& line : metrics(folder))
      if (line.contains("spike")) found.push_back(line);
    return found;
  }
  /// Step -> loss; a step that stands there twice fails the test.
  std::map<int64_t, double> losses(const std::string& folder) {
    std::map<int64_t, double> all;
    for (const Json& line : metrics(folder))
      if (line.contains("loss")) {
        EXPECT_TRUE(all.emplace(line.at("step"), line.at("loss")).second) << line;
      }
    return all;
  }
  Json state(const std::string& checkpoint) {
    return Json::parse(read_whole_file(program.file(checkpoint + "/state.json")));
  }
  static int errors(const Outcome& outcome) {
    int count = 0;
    std::istringstream lines(outcome.err);
    for (std::string line; std::getline(lines, line);) count += line.rfind("error", 0) == 0;
    return count;
  }
  static bool says(const Outcome& outcome, const std::string& text) {
    return outcome.err.find(text) != std::string::npos;
  }
  void expect_clean_run(const std::string& folder) {
    const auto all = losses(folder);
    ASSERT_EQ(all.size(), 100u);
    for (const auto& [step, loss] : all)
      if (step > 60) {
        EXPECT_LT(loss, 1) << step;
      }
  }

  Program program;
};

TEST_F(Spike, RollbackLeavesTheNoiseOutOnOneRankAndOnTwo) {
  write(90, 2);
  for (const std::string settings : {"", "parallel.shard_optimizer=true"}) {
    const int ranks = settings.empty() ? 1 : 2;
    const std::string run = "run" + std::to_string(ranks);
    const Outcome outcome = train("run.folder=" + run + " " + settings, ranks);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_TRUE(says(outcome, "step 91: the loss of ")) << outcome.err;
    EXPECT_TRUE(says(outcome, "goes back to " + run + "/step-00000080, rollback 1 of at most 3"));
    const std::vector<Json> found = spikes(run);
    ASSERT_EQ(found.size(), 2u) << "once per sequence of noise";
    EXPECT_EQ(found[0].at("spike"), "rollback");
    EXPECT_EQ(found[0].at("spike_step"), 91);
    EXPECT_EQ(found[0].at("step"), 80);
    EXPECT_EQ(found[0].at("skipped_sequences"), 11);
    EXPECT_GT(found[0].at("spike_loss").get<double>(), 4);
    EXPECT_EQ(found[1].at("spike_step"), 81);
    EXPECT_EQ(found[1].at("skipped_sequences"), 1);
    EXPECT_EQ(found[1].at("rollbacks"), 2);
    expect_clean_run(run);
    EXPECT_EQ(losses(run + "/set-aside-1").begin()->first, 81) << "nothing is lost";
    EXPECT_EQ(state(run + "/step-00000080").at("next_sample"), 92);
    EXPECT_EQ(state(run + "/step-00000080").at("rollbacks"), 2);
    EXPECT_EQ(state(run + "/step-00000100").at("rollbacks"), 0);
    // Weights, moments, schedule and place were those of the checkpoint that stands there now.
    const std::string again = run + "again";
    fs::create_directories(program.file(again));
    fs::copy(program.file(run + "/step-00000080"), program.file(again + "/step-00000080"),
             fs::copy_options::recursive);
    const Outcome resumed = train("run.folder=" + again + " " + settings, ranks);
    ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
    const auto first = losses(run), second = losses(again);
    ASSERT_EQ(second.size(), 20u);
    for (const auto& [step, loss] : second) EXPECT_EQ(loss, first.at(step)) << step;
  }
  // The sums over ranks differ in their last bits only.
  const auto one = losses("run1"), two = losses("run2");
  for (const auto& [step, loss] : one) EXPECT_NEAR(two.at(step), loss, 1e-3 + 0.01 * loss) << step;
}

TEST_F(Spike, TheLastCheckpointIsJudgedByDataThatNoStepTakes) {
  write(100, 1);
  const Outcome outcome = train();
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  ASSERT_EQ(spikes("run").size(), 1u);
  EXPECT_EQ(spikes("run")[0].at("spike_step"), 101);
  EXPECT_EQ(spikes("run")[0].at("step"), 80);
  EXPECT_FALSE(state("run/step-00000100").at("spike"));
  expect_clean_run("run");
}

TEST_F(Spike, TheFirstStepsAfterAResumeAreJudgedByThoseBefore) {
  write(95, 1);
  ASSERT_EQ(train("train.steps=90").exit_code, 0);
  const Outcome outcome = train("", 2);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const std::vector<Json> found = spikes("run");
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].at("spike_step"), 96);
  EXPECT_EQ(found[0].at("step"), 90);
  EXPECT_LT(found[0].at("spike_limit").get<double>(), 2) << "2 ln 256 for a start without a past";
  expect_clean_run("run");
}

TEST_F(Spike, RollbacksWithoutProgressEnd) {
  write(90, 40);
  for (const int ranks : {1, 2}) {
    const std::string run = " run.folder=run" + std::to_string(ranks);
    for (const int start : {1, 2}) {  // and the same command again at once
      const Outcome outcome = train("train.max_rollbacks=2" + run, ranks);
      EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
      EXPECT_EQ(errors(outcome), 1) << outcome.err;
      EXPECT_TRUE(says(outcome, "went back 2 times (train.max_rollbacks) without reaching"))
          << outcome.err;
      EXPECT_EQ(says(outcome, "rollback 2 of at most 2"), start == 1) << outcome.err;
    }
    const Outcome more = train("train.max_rollbacks=100" + run, ranks);
    EXPECT_EQ(more.exit_code, 0) << more.err;
    expect_clean_run(run.substr(12));
  }
}

TEST_F(Spike, ALearningRateThatIsTooHighEndsToo) {
  write(400, 0);
  ASSERT_EQ(train("train.steps=80").exit_code, 0);
  const Outcome outcome =
      train("optimizer.learning_rate=10 optimizer.clip_norm=0 train.max_rollbacks=1", 2);
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  EXPECT_EQ(errors(outcome), 1) << outcome.err;
  EXPECT_TRUE(says(outcome, "went back 1 time ")) << outcome.err;
  EXPECT_TRUE(says(outcome, "the last good checkpoint is run/step-00000080")) << outcome.err;
  EXPECT_EQ(train().exit_code, 0) << "with the old one it is well";
  expect_clean_run("run");
}

TEST_F(Spike, WithoutAGoodCheckpointRollbackEnds) {
  write(90, 1);
  const Outcome outcome = train("checkpoint.every=0");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  EXPECT_TRUE(says(outcome, "there is no good checkpoint to go back to")) << outcome.err;
  EXPECT_TRUE(state("run/step-00000090").at("spike")) << "what was reached is there";
}

TEST_F(Spike, StopSavesWhatWasReachedAndNamesTheLastGoodCheckpoint) {
  write(90, 1);
  for (const int ranks : {1, 2}) {
    const std::string run = "run" + std::to_string(ranks), folder = " run.folder=" + run;
    for (int start = 0; start < 2; ++start) {  // the same command again changes nothing
      const Outcome outcome = train("train.on_spike=stop" + folder, ranks);
      EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
      EXPECT_EQ(errors(outcome), 1) << outcome.err;
      EXPECT_TRUE(says(outcome, "step 91: the loss of ")) << outcome.err;
      EXPECT_TRUE(says(outcome, "train.on_spike is stop: the run ends after step 90"))
          << outcome.err;
      EXPECT_TRUE(says(outcome, "the last good checkpoint is " + run + "/step-00000080"))
          << outcome.err;
      EXPECT_TRUE(state(run + "/step-00000090").at("spike"));
      EXPECT_EQ(spikes(run).size(), 1u);
      EXPECT_EQ(losses(run).size(), 90u);
    }
    // Both ways on that the message names.
    const Outcome back = train(folder, ranks);
    EXPECT_EQ(back.exit_code, 0) << back.err;
    EXPECT_TRUE(says(back, "goes back to " + run + "/step-00000080")) << back.err;
    EXPECT_TRUE(fs::exists(program.file(run + "/set-aside-1/step-00000090")));
    expect_clean_run(run);
  }
}

TEST_F(Spike, AfterARollbackTheSameCommandContinuesTheBranchThatItBegan) {
  write(90, 1);
  ASSERT_EQ(train("train.steps=80").exit_code, 0);
  // Back to step 60; the noise of step 91 rolls back to step 60 itself, which is written anew.
  const std::string command = "checkpoint.resume=run/step-00000060 ";
  const Outcome first = train(command + "train.steps=120 checkpoint.every=1000");
  ASSERT_EQ(first.exit_code, 0) << first.err;
  ASSERT_TRUE(says(first, "goes back to run/step-00000060")) << first.err;
  const Outcome again = train(command + "train.steps=130");
  ASSERT_EQ(again.exit_code, 0) << again.err;
  EXPECT_TRUE(says(again, "was used before: the run continues from run/step-00000120"))
      << again.err;
  EXPECT_EQ(losses("run").size(), 130u);
}

TEST_F(Spike, WarnTrainsOnAndCallsNoCheckpointGoodThatAnswersNoise) {
  write(80, 1);  // the checkpoint of step 80 is judged by the noise
  const Outcome outcome = train("train.on_spike=warn");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_TRUE(says(outcome, "[warning] step 81: the loss of ")) << outcome.err;
  EXPECT_TRUE(says(outcome, "the last checkpoint is run/step-00000060")) << outcome.err;
  EXPECT_TRUE(state("run/step-00000080").at("spike"));
  EXPECT_FALSE(state("run/step-00000100").at("spike"));
  ASSERT_GE(spikes("run").size(), 1u);
  EXPECT_EQ(spikes("run")[0].at("spike"), "warn");
  EXPECT_EQ(losses("run").size(), 100u);
}

}  // namespace
}  // namespace longnet::test
