// `longnet train`, `evaluate` and `bench`: what they print for programs to read, the same figures
// on one rank and on two, and what a resumed run says about data that changed. Kills: kill_test.sh.
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

#include "cli/program.h"

namespace longnet::test {
namespace {

std::vector<nlohmann::json> json_lines(const std::string& path) {
  std::istringstream text(read_whole_file(path));
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

TEST(TrainCommand, OneRankAndTwoRanksLogTheSame) {
  Program program;
  program.write_tiny_config();
  const std::string command =
      "train tiny.yaml train.evaluate_every=2 train.sample_every=3 train.sample_tokens=5 "
      "run.folder=";
  std::vector<nlohmann::json> logs[2];
  for (int ranks : {1, 2}) {
    const std::string folder = "on" + std::to_string(ranks);
    const Outcome outcome = program.run(command + folder, ranks);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_NE(outcome.err.find("[rank 0] [info] step 3/3: loss "), std::string::npos)
        << outcome.err;
    EXPECT_EQ(outcome.err.find("[rank 1]"), std::string::npos) << "one rank on the console";
    EXPECT_EQ(outcome.err.find('\r'), std::string::npos)
        << "plain lines where there is no terminal";
    logs[ranks - 1] = json_lines(program.file(folder + "/metrics.jsonl"));
  }
  ASSERT_EQ(logs[0].size(), 6u);  // three steps, two evaluations, a sample
  ASSERT_EQ(logs[1].size(), 6u);
  int samples = 0;
  for (size_t i = 0; i < logs[0].size(); ++i) {
    ASSERT_EQ(logs[1][i].at("step"), logs[0][i].at("step"));
    ASSERT_EQ(logs[1][i].contains("evaluation"), logs[0][i].contains("evaluation"));
    if (logs[0][i].contains("sample")) {
      ++samples;
      EXPECT_EQ(logs[0][i].at("sample").get<std::string>().rfind("The ", 0), 0u);
      continue;
    }
    EXPECT_NEAR(logs[1][i].at("loss").get<double>(), logs[0][i].at("loss").get<double>(), 1e-5);
    if (logs[0][i].contains("evaluation")) continue;
    EXPECT_EQ(logs[0][i].at("exchanged_bytes"), 0);
    EXPECT_GT(logs[1][i].at("exchanged_bytes"), 0);
  }
  EXPECT_EQ(samples, 1);
}

TEST(TrainCommand, ResumeSaysWhetherTheDataIsTheSame) {
  Program program;
  program.write_tiny_config();
  ASSERT_EQ(program.run("train tiny.yaml train.steps=1").exit_code, 0);
  const std::string anew = "the order starts anew";
  const Outcome same = program.run("train tiny.yaml train.steps=2 data.cache=elsewhere");
  EXPECT_EQ(same.exit_code, 0) << same.err;
  EXPECT_NE(same.err.find("resumed from run/step-00000001 at step 1"), std::string::npos)
      << same.err;
  EXPECT_EQ(same.err.find(anew), std::string::npos) << same.err;
  // Another share for validation is another number of samples, so another permutation of them.
  const Outcome other = program.run("train tiny.yaml train.steps=3 data.validation_fraction=0.3");
  EXPECT_EQ(other.exit_code, 0) << other.err;
  EXPECT_NE(other.err.find(anew), std::string::npos) << other.err;
  const auto state =
      nlohmann::json::parse(read_whole_file(program.file("run/step-00000003/state.json")));
  EXPECT_EQ(state.at("epoch"), 1);
  EXPECT_EQ(state.at("next_sample"), 2);
}

TEST(EvaluateCommand, OneRankAndTwoRanksAgree) {
  Program program;
  program.write_tiny_config();
  ASSERT_EQ(program.run("train tiny.yaml").exit_code, 0);
  nlohmann::json results[2];
  for (int ranks : {1, 2}) {
    const Outcome outcome =
        program.run("evaluate run/step-00000003 data.validation_fraction=0.1 --json", ranks);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    results[ranks - 1] = nlohmann::json::parse(outcome.out);
  }
  const auto number = [&](int ranks, const char* name) {
    return results[ranks - 1].at(name).get<double>();
  };
  EXPECT_EQ(number(1, "tokens"), number(2, "tokens"));
  EXPECT_EQ(number(1, "tokens"), 6 * 128) << "800 bytes hold 6 whole sequences and a last target";
  EXPECT_NEAR(number(1, "loss"), number(2, "loss"), 1e-6);
  EXPECT_NEAR(number(1, "bits_per_token"), number(1, "loss") / std::log(2.0), 1e-12);
  EXPECT_EQ(number(1, "bits_per_byte"), number(1, "bits_per_token")) << "a token is a byte";
  EXPECT_NEAR(number(1, "perplexity"), std::exp(number(1, "loss")), 1e-9 * number(1, "perplexity"));
  const Outcome text = program.run("evaluate run/step-00000003 --samples 1");
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_NE(text.out.find("128 tokens: loss "), std::string::npos) << text.out;
}

TEST(BenchCommand, PrintsJson) {
  Program program;
  program.write_tiny_config();
  for (const std::string arguments :
       {"attention --branch 64:2 --head-dim 16", "step tiny.yaml --steps 2",
        "collectives --min-bytes 64 --max-bytes 256"}) {
    const Outcome outcome = program.run("bench " + arguments);
    ASSERT_EQ(outcome.exit_code, 0) << arguments << ": " << outcome.err;
    const nlohmann::json json = nlohmann::json::parse(outcome.out, nullptr, false);
    ASSERT_TRUE(json.is_object()) << outcome.out;
    EXPECT_EQ(json.at("benchmark"), arguments.substr(0, arguments.find(' ')));
    for (const char* name : {"command", "commit", "processor"}) EXPECT_TRUE(json.contains(name));
  }
}

}  // namespace
}  // namespace longnet::test
