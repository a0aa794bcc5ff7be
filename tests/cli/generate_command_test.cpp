// `longnet generate` on a checkpoint of three steps: what repeats, what differs, what is printed.
#include <gtest/gtest.h>

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

}  // namespace
}  // namespace longnet::test
