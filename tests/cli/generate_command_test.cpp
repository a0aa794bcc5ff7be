// `longnet generate` on a checkpoint of three steps: what repeats, what differs, what is printed.
#include <gtest/gtest.h>
#include <zlib.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <regex>
#include <sstream>

#include "cli/program.h"

namespace longnet::test {
namespace {

class Generate : public testing::Test {
 protected:
  void train(const std::string& settings = "") {
    program.write_tiny_config();
    const Outcome outcome = program.run("train tiny.yaml " + settings);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  }
  std::string text(const std::string& options) {
    const Outcome outcome = program.run("generate run/step-00000003 " + options);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    EXPECT_NE(outcome.err.find("tokens/s; cache"), std::string::npos) << outcome.err;
    return outcome.out;
  }
  Program program;
};

TEST_F(Generate, SeedsAndTemperatures) {
  train();
  const std::string sampled = text("--prompt 'the ' --tokens 60 --seed 7");
  EXPECT_EQ(sampled.size(), 61u) << "a byte per token and a line end";
  EXPECT_EQ(text("--prompt 'the ' --tokens 60 --seed 7"), sampled);
  EXPECT_NE(text("--prompt 'the ' --tokens 60 --seed 8"), sampled);
  const std::string likeliest = text("--prompt 'the ' --tokens 60 --temperature 0");
  EXPECT_NE(likeliest, sampled);
  EXPECT_EQ(text("--prompt 'the ' --tokens 60 --temperature 0 --seed 9"), likeliest);
  EXPECT_EQ(text("--prompt 'the ' --tokens 60 --top-k 1 --seed 9"), likeliest);
  // A longer continuation begins with the shorter one, also past the training length of 128.
  EXPECT_EQ(text("--prompt 'the ' --tokens 200 --temperature 0").substr(0, 60),
            likeliest.substr(0, 60));
}

TEST_F(Generate, PromptsInThreeForms) {
  train();
  const std::string expected = text("--prompt 'the' --tokens 40");
  program.folder().write("prompt.txt", "the");
  EXPECT_EQ(text("--prompt-file prompt.txt --tokens 40"), expected);
  EXPECT_EQ(text("--prompt-tokens 116,104,101 --tokens 40"), expected);
  EXPECT_NE(text("--prompt 'dog' --tokens 40"), expected);
}

TEST_F(Generate, OtherVocabulariesPrintNumbers) {
  std::string tokens;
  for (int i = 0; i < 4000; ++i) {
    const uint16_t token = static_cast<uint16_t>(i * i % 300);
    tokens.append(reinterpret_cast<const char*>(&token), 2);
  }
  program.folder().write("tokens.bin", tokens);
  train("data.train=tokens.bin data.format=tokens_u16 model.vocab_size=300");
  std::istringstream numbers(text("--prompt-tokens 0,1,4,299 --tokens 10"));
  int count = 0;
  for (int64_t token; numbers >> token; ++count) {
    EXPECT_GE(token, 0);
    EXPECT_LT(token, 300);
  }
  EXPECT_TRUE(numbers.eof());
  EXPECT_EQ(count, 10);
  const Outcome refused = program.run("generate run/step-00000003 --prompt a");
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_NE(refused.err.find("give --prompt-tokens 1,2,3"), std::string::npos) << refused.err;
}

TEST_F(Generate, StatisticsAreALineOfStandardError) {
  train();
  const std::regex line(
      "prompt 4 tokens in [0-9.]+ s; 9 tokens in [0-9.]+ s, [0-9.]+ tokens/s; cache [0-9.]+ k?B\n");
  const std::string command = "generate run/step-00000003 --prompt 'the ' --tokens 9";
  const Outcome shown = program.run(command);
  EXPECT_TRUE(std::regex_match(shown.err, line)) << shown.err;
  EXPECT_EQ(shown.out.size(), 10u) << shown.out;
  EXPECT_EQ(shown.out.back(), '\n') << "so that the statistics stand by themselves on a terminal";
  const Outcome filed = program.run(command + " --out said.txt");
  EXPECT_TRUE(std::regex_match(filed.err, line)) << filed.err;
  EXPECT_EQ(filed.out, "");
  EXPECT_EQ(read_whole_file(program.file("said.txt")), shown.out);
}

/// Makes every weight of a checkpoint as large as a float can be, and its checksums right.
void make_useless(const Program& program, const std::string& checkpoint) {
  const std::string model = checkpoint + "/model.safetensors";
  FileTensors tensors = read_tensors(program.file(model));
  for (auto& [name, tensor] : tensors) {
    std::vector<float> values = tensor.floats();
    for (float& value : values) value = std::copysign(std::numeric_limits<float>::max(), value);
    tensor = file_tensor(tensor.dtype, tensor.shape, values);
  }
  write_tensors(program.folder(), model, tensors);
  const auto checksum = [](const std::string& bytes) {
    return crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size());
  };
  const std::string bytes = read_whole_file(program.file(model));
  auto state = nlohmann::json::parse(read_whole_file(program.file(checkpoint + "/state.json")));
  state["files"]["model.safetensors"] = {{"bytes", bytes.size()}, {"crc32", checksum(bytes)}};
  state.erase("crc32");
  state["crc32"] = checksum(state.dump());
  program.folder().write(checkpoint + "/state.json", state.dump());
}

TEST_F(Generate, WeightsThatGiveNoNumbersEndGenerateAndEvaluate) {
  train();
  make_useless(program, "run/step-00000003");
  const auto one_line = [](const Outcome& outcome) {
    return std::count(outcome.err.begin(), outcome.err.end(), '\n') == 1 &&
           outcome.err.rfind("error", 0) == 0;
  };
  const Outcome said = program.run("generate run/step-00000003 --prompt 'the ' --tokens 9");
  EXPECT_EQ(said.exit_code, 1);
  EXPECT_TRUE(one_line(said)) << said.err;
  EXPECT_NE(said.err.find("scores for token 1 are not finite"), std::string::npos) << said.err;
  EXPECT_EQ(said.out, "");
  const Outcome filed =
      program.run("generate run/step-00000003 --prompt 'the ' --tokens 9 --out said.txt");
  EXPECT_EQ(filed.exit_code, 1);
  EXPECT_FALSE(std::filesystem::exists(program.file("said.txt")));
  for (const std::string options : {"", " --json"})
    for (const int ranks : {1, 2}) {
      const Outcome judged = program.run("evaluate run/step-00000003" + options, ranks);
      EXPECT_EQ(judged.exit_code, 1);
      EXPECT_TRUE(one_line(judged) || ranks > 1) << judged.err;
      EXPECT_NE(judged.err.find("evaluation: the loss is nan"), std::string::npos) << judged.err;
      EXPECT_EQ(judged.err.find("evaluation: ", judged.err.find("evaluation: ") + 1),
                std::string::npos)
          << "one rank speaks: " << judged.err;
      EXPECT_EQ(judged.out, "");
    }
}

}  // namespace
}  // namespace longnet::test
