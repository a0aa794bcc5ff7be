// A run's folder and its signals with real processes: two trainings of one folder, requests to end
// on one rank and under the launcher, during set-up and a second time, a folder that is deleted,
// starts that fail.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <thread>

#include "cli/program.h"

namespace longnet::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

/// `longnet ARGUMENTS` in the background, on one rank or under scripts/mpirun_local.sh.
class Background {
 public:
  Background(const Program& program, const std::string& name, const std::string& arguments,
             int ranks = 1)
      : errors_(program.file(name + ".err")) {
    std::string command =
        "cd '" + program.folder().path() + "' && export OMP_NUM_THREADS=1 && exec ";
    if (ranks > 1)
      command += "'" + source_folder() + "/scripts/mpirun_local.sh' " + std::to_string(ranks) + " ";
    command += "'" + binary_folder() + "/longnet' " + arguments + " >/dev/null 2>'" + errors_ + "'";
    process_ = fork();
    if (process_ == 0) {
      execl("/bin/bash", "bash", "-c", command.c_str(), nullptr);
      _exit(127);
    }
  }
  ~Background() {
    if (process_ > 0) {
      kill(process_, SIGKILL);
      finish();
    }
  }
  void send(int signal) const { kill(process_, signal); }
  std::string errors() const { return fs::exists(errors_) ? read_whole_file(errors_) : ""; }
  bool said(const std::string& text) const {
    for (int i = 0; i < 1200; ++i) {
      if (errors().find(text) != std::string::npos) return true;
      std::this_thread::sleep_for(50ms);
    }
    return false;
  }
  /// Its exit code; 128 + signal if one killed it.
  int finish() {
    int status = 0;
    waitpid(process_, &status, 0);
    process_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  std::string errors_;
  pid_t process_ = 0;
};

bool any_checkpoint(const std::string& folder) {
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().filename().string().rfind("step-", 0) == 0) return true;
  return false;
}

TEST(RunFolder, OfTwoTrainingsAtOnceOneIsRefusedByName) {
  Program program;
  program.write_tiny_config();
  Background a(program, "a", "train tiny.yaml train.steps=40");
  Background b(program, "b", "train tiny.yaml train.steps=40 train.seed=2");
  const int codes[2] = {a.finish(), b.finish()};
  EXPECT_EQ(codes[0] + codes[1], 1) << a.errors() << b.errors();
  const std::string refused = codes[0] == 1 ? a.errors() : b.errors();
  EXPECT_NE(refused.find("error: run.folder run is in use by process "), std::string::npos)
      << refused;
  EXPECT_TRUE(fs::exists(program.file("run/step-00000040/state.json")));
  EXPECT_FALSE(fs::exists(program.file("run/run.lock")));
}

TEST(RunFolder, RequestsToEndSaveOnOneRankAndUnderTheLauncher) {
  for (const int ranks : {1, 2}) {
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
      Program program;
      program.write_tiny_config();
      Background training(program, "t", "train tiny.yaml train.steps=1000000", ranks);
      ASSERT_TRUE(training.said("step 2/")) << training.errors();
      training.send(signal);
      EXPECT_EQ(training.finish(), 0) << training.errors();
      EXPECT_TRUE(training.said("saving after this step ...")) << training.errors();
      EXPECT_TRUE(training.said("the same command continues from here")) << training.errors();
      EXPECT_TRUE(any_checkpoint(program.file("run"))) << training.errors();
      EXPECT_FALSE(fs::exists(program.file("run/run.lock")));
    }
  }
}

TEST(RunFolder, TwoRequestsWithinAMomentAreOne) {
  for (const int ranks : {1, 2}) {
    Program program;
    program.write_tiny_config();
    // `timeout` and closing terminals send a signal twice; a step takes 0.2 s.
    Background training(program, "t", "train tiny.yaml train.steps=1000 train.accumulation=60",
                        ranks);
    ASSERT_TRUE(training.said("step 1/")) << training.errors();
    std::this_thread::sleep_for(100ms);
    training.send(SIGTERM);
    std::this_thread::sleep_for(100ms);
    training.send(SIGTERM);
    EXPECT_EQ(training.finish(), 0) << training.errors();
    EXPECT_TRUE(any_checkpoint(program.file("run"))) << training.errors();
  }
}

TEST(RunFolder, ASecondRequestEndsAtOnce) {
  for (const int ranks : {1, 2}) {
    Program program;
    program.write_tiny_config();
    // The first step takes hours.
    Background training(program, "t", "train tiny.yaml train.accumulation=1000000", ranks);
    ASSERT_TRUE(training.said("peak of all ranks")) << training.errors();
    std::this_thread::sleep_for(300ms);
    training.send(SIGTERM);
    ASSERT_TRUE(training.said("saving after this step ...")) << training.errors();
    std::this_thread::sleep_for(2s);
    training.send(SIGTERM);
    const int code = training.finish();
    if (ranks == 1) {
      EXPECT_EQ(code, 128 + SIGTERM) << training.errors();
    }
    EXPECT_NE(code, 0) << training.errors();
    EXPECT_FALSE(any_checkpoint(program.file("run")));
  }
}

/// "step loss" of every evaluation, in the order of run/metrics.jsonl.
std::vector<std::string> evaluations(const Program& program, const std::string& run) {
  std::vector<std::string> found;
  std::istringstream lines(read_whole_file(program.file(run + "/metrics.jsonl")));
  for (std::string line; std::getline(lines, line);) {
    const nlohmann::json json = nlohmann::json::parse(line);
    if (json.contains("evaluation"))
      found.push_back(json["step"].dump() + " " + json["loss"].dump());
  }
  return found;
}

/// As if a signal had ended the run in its last evaluation, which leaves no line.
void drop_last_line(const std::string& path) {
  std::string text = read_whole_file(path);
  text.erase(text.rfind('\n', text.size() - 2) + 1);
  std::ofstream(path) << text;
}

TEST(RunFolder, AnEvaluationThatASignalEndedIsMadeUpFor) {
  Program program;
  program.write_tiny_config();
  const std::string text = read_whole_file(program.file("text.txt"));
  std::string long_text;
  for (int i = 0; i < 70; ++i) long_text += text;
  program.folder().write("text.txt", long_text);  // an evaluation takes 0.1 s
  const std::string train =
      "train tiny.yaml train.steps=4 train.evaluate_every=1 train.evaluate_samples=200 "
      "run.log_every=1 run.folder=";
  ASSERT_EQ(program.run(train + "whole").exit_code, 0);
  const std::vector<std::string> expected = evaluations(program, "whole");
  ASSERT_EQ(expected.size(), 4);
  for (const char* after : {"step 1/4", "step 2/4", "step 4/4"}) {
    Background training(program, "cut", train + "cut");
    ASSERT_TRUE(training.said(after)) << training.errors();
    training.send(SIGTERM);
    ASSERT_EQ(training.finish(), 0) << training.errors();
    EXPECT_NE(training.errors().find("the same command continues from here"), std::string::npos)
        << training.errors();
    const Outcome rest = program.run(train + "cut");
    ASSERT_EQ(rest.exit_code, 0) << rest.err;
    EXPECT_EQ(evaluations(program, "cut"), expected) << after;
    fs::remove_all(program.file("cut"));
  }
  // The last line is the evaluation after the last step.
  drop_last_line(program.file("whole/metrics.jsonl"));
  ASSERT_EQ(evaluations(program, "whole").size(), 3);
  for (const char* said : {"step 4: validation loss", "already complete at step 4"}) {
    const Outcome again = program.run(train + "whole");
    EXPECT_EQ(again.exit_code, 0) << again.err;
    EXPECT_NE(again.err.find(said), std::string::npos) << again.err;
    EXPECT_EQ(evaluations(program, "whole"), expected);
  }
}

TEST(RunFolder, SetUpEndsAtOnce) {
  Program program;
  program.write_tiny_config();
  fs::create_directory(program.file("run"));
  program.folder().write(
      "run/run.lock",
      R"({"host":"far","pid":7,"process_start":"1","boot":"b","started":"s","token":"t"})");
  const auto start = std::chrono::steady_clock::now();
  Background training(program, "t", "train tiny.yaml");  // looks for a minute whether "far" lives
  ASSERT_TRUE(training.said("waiting up to")) << training.errors();
  training.send(SIGINT);
  EXPECT_EQ(training.finish(), 128 + SIGINT) << training.errors();
  EXPECT_LT(std::chrono::steady_clock::now() - start, 50s);
  EXPECT_TRUE(training.said("SIGINT during set-up: ended, no step was trained"))
      << training.errors();
}

TEST(RunFolder, AnEndDuringSetUpLeavesNoFolder) {
  for (const int ranks : {1, 2}) {
    Program program;
    program.write_tiny_config();
    fs::create_directory(program.file("kept"));
    // At the least it measures the machine for 0.3 s after the folder is made.
    Background training(program, "t", "train tiny.yaml run.folder=kept/a//b/ run.log_level=debug",
                        ranks);
    const auto limit = std::chrono::steady_clock::now() + 60s;
    while (!fs::exists(program.file("kept/a/b")) && std::chrono::steady_clock::now() < limit)
      std::this_thread::sleep_for(1ms);
    training.send(SIGTERM);
    EXPECT_NE(training.finish(), 0) << training.errors();
    EXPECT_TRUE(training.said("during set-up: ended, no step was trained")) << training.errors();
    EXPECT_FALSE(fs::exists(program.file("kept/a"))) << training.errors();
    EXPECT_TRUE(fs::exists(program.file("kept")));
  }
}

TEST(RunFolder, ADeletedFolderIsNoticedAndMadeAnew) {
  Program program;
  program.write_tiny_config();
  Background training(program, "t", "train tiny.yaml train.steps=1000000");
  ASSERT_TRUE(training.said("step 2/")) << training.errors();
  fs::remove_all(program.file("run"));
  ASSERT_TRUE(training.said("was deleted during the run and has been created again"))
      << training.errors();
  training.send(SIGTERM);
  EXPECT_EQ(training.finish(), 0) << training.errors();
  EXPECT_TRUE(any_checkpoint(program.file("run")));
  EXPECT_NE(read_whole_file(program.file("run/log.txt")).find("created again"), std::string::npos);
  EXPECT_FALSE(read_whole_file(program.file("run/metrics.jsonl")).empty());
}

TEST(RunFolder, ADeletedLogOrMetricsFileIsNoticedAndBegunAnew) {
  Program program;
  program.write_tiny_config();
  Background training(program, "t", "train tiny.yaml train.steps=1000000");
  ASSERT_TRUE(training.said("step 2/")) << training.errors();
  for (const char* name : {"run/metrics.jsonl", "run/log.txt"}) {
    fs::rename(program.file(name), program.file("moved"));
    const std::string notice = std::string(name) + " was deleted or moved away during the run";
    EXPECT_TRUE(training.said(notice)) << training.errors();
  }
  training.send(SIGTERM);
  EXPECT_EQ(training.finish(), 0) << training.errors();
  for (const char* name : {"run/metrics.jsonl", "run/log.txt"})
    EXPECT_FALSE(read_whole_file(program.file(name)).empty());
}

TEST(RunFolder, TheReaderOfTheOutputMayEnd) {
  for (const int ranks : {1, 2}) {
    Program program;
    program.write_tiny_config();
    // `head` ends after the first line, and hundreds follow.
    program.run("train tiny.yaml train.steps=400 run.log_every=1 2>&1 | head -n 1; true", ranks);
    EXPECT_TRUE(fs::exists(program.file("run/step-00000400"))) << ranks;
  }
}

TEST(RunFolder, RanksWithOtherSettingsOrDataAreRefused) {
  Program program;
  program.write_tiny_config();
  program.folder().write("other.txt", read_whole_file(program.file("text.txt")) + "more");
  program.folder().write("rank.sh",
                         "[ \"$OMPI_COMM_WORLD_RANK\" = 0 ] && exec \"$1\" train tiny.yaml\n"
                         "mkdir -p own && cd own && cp ../tiny.yaml . && cp \"../$2\" text.txt\n"
                         "exec \"$1\" train tiny.yaml $3\n");
  const auto start = [&](const std::string& rest) {
    const std::string command = "cd '" + program.folder().path() +
                                "' && sed -i 's|folder: run|folder: " + program.file("run") +
                                "|' tiny.yaml && '" + source_folder() +
                                "/scripts/mpirun_local.sh' 2 bash rank.sh '" + binary_folder() +
                                "/longnet' " + rest + " 2>errors";
    const int status = std::system(command.c_str());
    return std::pair(WEXITSTATUS(status), read_whole_file(program.file("errors")));
  };
  const auto [code, settings] = start("text.txt train.seed=7");
  EXPECT_NE(code, 0);
  EXPECT_NE(settings.find("has train.seed: 7, rank 0"), std::string::npos) << settings;
  const auto [data_code, data] = start("other.txt");
  EXPECT_NE(data_code, 0);
  EXPECT_NE(data.find("data.train: rank 1 on "), std::string::npos) << data;
  EXPECT_FALSE(fs::exists(program.file("run")));
}

TEST(RunFolder, StartsThatFailLeaveNothing) {
  Program program;
  program.write_tiny_config();
  const Outcome missing = program.run("train tiny.yaml data.train=nowhere run.folder=a/b");
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_FALSE(fs::exists(program.file("a"))) << missing.err;
  fs::create_directories(program.file("c/metrics.jsonl"));
  const Outcome unreadable = program.run("train tiny.yaml run.folder=c");
  EXPECT_EQ(unreadable.exit_code, 1);
  EXPECT_NE(unreadable.err.find("c/metrics.jsonl"), std::string::npos) << unreadable.err;
  EXPECT_FALSE(fs::exists(program.file("c/log.txt")));
  EXPECT_FALSE(fs::exists(program.file("c/run.lock")));
}

TEST(RunFolder, AWarmUpLongerThanTheRunIsShortenedWithAWarning) {
  Program program;
  program.write_tiny_config();
  const Outcome outcome = program.run("train tiny.yaml optimizer.warmup_steps=100");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("optimizer.warmup_steps 100 is above train.steps 3: warm-up is "
                             "shortened to 1 steps"),
            std::string::npos)
      << outcome.err;
}

}  // namespace
}  // namespace longnet::test
