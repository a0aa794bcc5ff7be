// Config: defaults, YAML, words, round trip, the printed files, and the messages of bad input.
#include "core/config.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>

#include "core/error.h"
#include "support/source_folder.h"
#include "support/temporary_folder.h"

namespace longnet {
namespace {

using test::TemporaryFolder;

constexpr const char* kName = "configs/x.yaml";

Config parse(const std::string& yaml, const std::vector<std::string>& words = {}) {
  return parse_config(yaml, kName, words);
}

template <typename Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

/// What every message for the user is: one line, not empty, of a length that can be read.
void expect_one_line(const std::string& message) {
  EXPECT_FALSE(message.empty()) << "nothing was thrown";
  EXPECT_LT(message.size(), 420u) << message;
  for (const char c : message)
    EXPECT_TRUE(static_cast<unsigned char>(c) >= 0x20 && c != 0x7F) << message;
}

TEST(Config, EmptyTextGivesTheDefaults) {
  EXPECT_EQ(parse(""), Config{});
  EXPECT_EQ(parse("\n# nothing\n"), Config{});
  EXPECT_EQ(parse("---\n"), Config{});
  EXPECT_EQ(parse("model:\ntrain:\n  # batch_size: 2\n"), Config{});
  EXPECT_EQ(load_config("", {}), Config{});
}

TEST(Config, ReadsEveryKindOfValue) {
  const Config c = parse(
      "model: {dim: 256, heads: 8, causal: false, position: rope, rope_base: 1e6}\n"
      "data:\n"
      "  train: a.txt\n"
      "  validation:\n"
      "    - 'b.txt'\n"
      "    - \"c d.txt\"\n"
      "  extensions: .c,.h\n"
      "  separator: -1\n"
      "train:\n"
      "  sequence_length: 1e6\n"
      "  steps: 1.5e3\n"
      "  sample_prompt: \"A: \\n\"\n"
      "run:\n"
      "  progress: on\n");
  EXPECT_EQ(c.model.dim, 256);
  EXPECT_EQ(c.model.heads, 8);
  EXPECT_FALSE(c.model.causal);
  EXPECT_EQ(c.model.position, "rope");
  EXPECT_EQ(c.model.rope_base, 1e6);
  EXPECT_EQ(c.data.train, std::vector<std::string>{"a.txt"});
  EXPECT_EQ(c.data.validation, (std::vector<std::string>{"b.txt", "c d.txt"}));
  EXPECT_EQ(c.data.extensions, ".c,.h");
  EXPECT_EQ(c.data.separator, -1);
  EXPECT_EQ(c.train.sequence_length, 1000000);
  EXPECT_EQ(c.train.steps, 1500);
  EXPECT_EQ(c.train.sample_prompt, "A: \n");
  EXPECT_EQ(c.run.progress, "on");
  Config rest = c;  // nothing else may have moved
  rest.model = Config{}.model;
  rest.data = Config{}.data;
  rest.train.sequence_length = Config{}.train.sequence_length;
  rest.train.steps = Config{}.train.steps;
  rest.train.sample_prompt = Config{}.train.sample_prompt;
  rest.run.progress = "auto";
  EXPECT_EQ(rest, Config{});
}

TEST(Config, ReadsBranches) {
  const std::vector<Branch> expected{{512, 1}, {2048, 4}};
  EXPECT_EQ(parse("model: {branches: [[512, 1], [2048, 4]]}").model.branches, expected);
  EXPECT_EQ(
      parse("model:\n  branches:\n    - [512, 1]\n    -\n      - 2048\n      - 4\n").model.branches,
      expected);
  EXPECT_EQ(parse("", {"model.branches=[[512,1],[2048,4]]"}).model.branches, expected);
  EXPECT_EQ(parse("", {"model.branches=[[7, 12]]"}).model.branches, (std::vector<Branch>{{7, 12}}));
}

TEST(Config, WordsComeAfterTheFileAndTheLastWins) {
  const Config c = parse("train: {batch_size: 2, seed: 3}\n",
                         {"train.batch_size=4", "train.batch_size=5", "run.folder=runs/a=b"});
  EXPECT_EQ(c.train.batch_size, 5);
  EXPECT_EQ(c.train.seed, 3);
  EXPECT_EQ(c.run.folder, "runs/a=b");
}

TEST(Config, WordsTakeTextsAsTheyAre) {
  const Config c = parse("", {"train.sample_prompt=a: [b] # \"c\" ", "data.train=x, y.txt",
                              "data.validation=[p.txt, q.txt]", "data.extensions="});
  EXPECT_EQ(c.train.sample_prompt, "a: [b] # \"c\" ");
  EXPECT_EQ(c.data.train, std::vector<std::string>{"x, y.txt"});
  EXPECT_EQ(c.data.validation, (std::vector<std::string>{"p.txt", "q.txt"}));
  EXPECT_EQ(c.data.extensions, "");
  EXPECT_TRUE(parse("data: {train: a}", {"data.train="}).data.train.empty());
}

TEST(Config, WordsMayMendWhatTheFileBreaks) {
  // Rules between keys are checked once, after the words.
  EXPECT_EQ(parse("model: {dim: 190}\n", {"model.heads=5"}).model.head_dim(), 38);
  EXPECT_EQ(parse("train: {steps: 5}\n", {"optimizer.warmup_steps=0"}).train.steps, 5);
}

TEST(Config, ApplyOverridesChangesAndChecks) {
  Config c;
  apply_overrides(c, {"model.dim=256", "model.heads=8"});
  EXPECT_EQ(c.model.dim, 256);
  EXPECT_EQ(c.model.heads, 8);
  const Config before = c;
  EXPECT_NE(message_of([&] { apply_overrides(c, {"train.seed=9", "model.heads=7"}); }), "");
  EXPECT_EQ(c, before) << "a failed call must leave the config alone";
}

TEST(Config, PathsAreExpanded) {
  const std::string home = std::getenv("HOME");
  ASSERT_EQ(::setenv("LN_TEST_DATA", "/big/data", 1), 0);
  const Config c = parse("data: {train: [~/a.txt, $LN_TEST_DATA/b, \"${LN_TEST_DATA}c/$$x/$\"]}\n",
                         {"run.folder=~", "checkpoint.resume=$LN_TEST_DATA/run/step-1",
                          "data.cache=a/~", "data.validation=$LN_TEST_DATA"});
  EXPECT_EQ(c.data.train,
            (std::vector<std::string>{home + "/a.txt", "/big/data/b", "/big/datac/$x/$"}));
  EXPECT_EQ(c.run.folder, home);
  EXPECT_EQ(c.checkpoint.resume, "/big/data/run/step-1");
  EXPECT_EQ(c.data.cache, "a/~") << "only a leading ~ stands for the home folder";
  EXPECT_EQ(c.data.validation, std::vector<std::string>{"/big/data"});
  EXPECT_EQ(parse(to_yaml(c)), c) << "a checkpoint's configuration is read back as it was";
  // Other texts are taken as they are.
  EXPECT_EQ(parse("", {"train.sample_prompt=~ $LN_TEST_DATA"}).train.sample_prompt,
            "~ $LN_TEST_DATA");
  Config programs;  // a name that nobody can type
  programs.run.folder = "~";
  EXPECT_EQ(parse(to_yaml(programs)).run.folder, "./~");
}

TEST(Config, TextsAreUtf8) {
  // What a checkpoint, a log or metrics could not hold is found before the run begins.
  for (const char* key : {"run.folder", "data.cache", "data.train", "data.validation",
                          "checkpoint.resume", "train.sample_prompt"})
    for (const char* bytes :
         {"r\xff", "\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\x80"}) {
      const std::string word = std::string(key) + "=a" + bytes;
      const std::string message = message_of([&] { parse("", {word}); });
      expect_one_line(message);
      EXPECT_NE(message.find("is not UTF-8 at byte "), std::string::npos) << message;
      EXPECT_NE(message.find(key), std::string::npos) << message;
    }
  for (const char* text :
       {"a\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf"})
    EXPECT_EQ(parse("", {std::string("run.folder=") + text}).run.folder, text);
}

TEST(Config, FilesThatAreNone) {
  const TemporaryFolder folder;
  folder.write("long.yaml", std::string((1 << 20) + 1, '#'));
  ASSERT_EQ(::mkfifo(folder.file("pipe.yaml").c_str(), 0600), 0);
  const auto refusal_of = [](const std::string& path) {
    const std::string message = message_of([&] { load_config(path, {}); });
    expect_one_line(message);
    return message;
  };
  EXPECT_NE(refusal_of(folder.file("long.yaml")).find("holds 1048577 bytes; allowed are 1048576"),
            std::string::npos);
  EXPECT_NE(refusal_of(folder.file("pipe.yaml")).find("is a pipe, not a regular file"),
            std::string::npos);
  EXPECT_NE(refusal_of("/dev/zero").find("is a device"), std::string::npos);
  EXPECT_NE(refusal_of(folder.path()).find("is a folder"), std::string::npos);
}

TEST(Config, NestingAndAliasesCostNothing) {
  const auto repeated = [](const std::string& text, int times) {
    std::string all;
    for (int i = 0; i < times; ++i) all += text;
    return all;
  };
  std::string aliases = "data:\n  train: [&a0 [x, x]";
  for (int i = 1; i < 60; ++i) aliases += fmt::format(", &a{} [*a{}, *a{}]", i, i - 1, i - 1);
  for (const std::string& text :
       {"model: " + repeated("[", 100000), "model: " + repeated("{a: ", 100000),
        repeated("- ", 100000), repeated("? ", 100000), aliases + "]\n"})
    expect_one_line(message_of([&] { parse(text); }));
}

TEST(Config, NextTokenLossNeedsTheCausalMask) {
  const Config encoder = parse("", {"model.causal=false", "model.position=rope"});
  EXPECT_NE(message_of([&] { check_next_token_loss(encoder); }).find("model.causal=false"),
            std::string::npos);
  EXPECT_NO_THROW(check_next_token_loss(Config{}));
}

TEST(Config, HeadOffsetMode) {
  EXPECT_EQ(Config{}.model.head_offset_mode(), HeadOffset::kInterleaved);
  EXPECT_EQ(parse("model: {head_offset: blocked}").model.head_offset_mode(), HeadOffset::kBlocked);
}

// A config in which every key differs from its default.
Config changed_config() {
  Config c;
  c.model = {320,        96,        2,      3,      100,       {{10, 3}, {1000, 1}},
             true,       "blocked", "rope", 333.25, 12345.678, "pre_ln",
             "parallel", "swiglu",  true,   false,  true,      1.0 / 3e6};
  c.model.causal = false;
  c.data = {{"a b.txt", "\"q\"\\", "#no", "null", "a$b$$c", "käse/*.txt"},
            {"x"},
            "tokens_u16",
            "enwik8",
            0.1 + 0.2,
            -1,
            4.4,
            "sequential",
            "/tmp/c: d",
            ".py,.c"};
  c.train = {4097,
             3,
             5,
             1234567890123,
             77,
             "layer",
             99,
             11,
             0,
             0,
             " tab\t nl\n \x01 'quote' \"two\" \\ é: # ",
             9,
             "rollback",
             7};
  c.optimizer = {"stable_adamw",
                 6.02e-4,
                 0.0,
                 0.999999999999,
                 1.0000000000000002e-8,
                 0.0,
                 0.0,
                 "cosine",
                 3,
                 0.1,
                 2.5};
  c.parallel = {3, 2, 5, 1, 0.5, true};
  c.checkpoint = {0, 0, "runs/x/step=3", "stop", true};
  c.run = {"runs/ä", true, "cuda", "cudnn", "bf16", "debug", "off", 10};
  return c;
}

TEST(Config, EveryMemberHasAKey) {
  // These fail to compile when a struct gains a member; then the numbers must grow with the table.
  Config c;
  [[maybe_unused]] auto& [m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, m15, m16,
                          m17, m18] = c.model;
  [[maybe_unused]] auto& [d1, d2, d3, d4, d5, d6, d7, d8, d9, d10] = c.data;
  [[maybe_unused]] auto& [t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13, t14] = c.train;
  [[maybe_unused]] auto& [o1, o2, o3, o4, o5, o6, o7, o8, o9, o10, o11] = c.optimizer;
  [[maybe_unused]] auto& [p1, p2, p3, p4, p5, p6] = c.parallel;
  [[maybe_unused]] auto& [c1, c2, c3, c4, c5] = c.checkpoint;
  [[maybe_unused]] auto& [r1, r2, r3, r4, r5, r6, r7, r8] = c.run;
  EXPECT_EQ(config_keys().size(), 18u + 10 + 14 + 11 + 6 + 5 + 8);
  std::set<std::string> names;
  for (const ConfigKey& key : config_keys()) names.insert(key.key);
  EXPECT_EQ(names.size(), config_keys().size());
}

TEST(Config, YamlRoundTripIsExact) {
  EXPECT_EQ(parse(to_yaml(Config{})), Config{});
  const Config c = changed_config();
  ASSERT_NO_THROW(check_config(c));
  const Config back = parse(to_yaml(c));
  EXPECT_EQ(back.model, c.model);
  EXPECT_EQ(back.data, c.data);
  EXPECT_EQ(back.train, c.train);
  EXPECT_EQ(back.optimizer, c.optimizer);
  EXPECT_EQ(back.parallel, c.parallel);
  EXPECT_EQ(back.checkpoint, c.checkpoint);
  EXPECT_EQ(back.run, c.run);
  EXPECT_EQ(to_yaml(back), to_yaml(c));
}

TEST(Config, YamlRoundTripOfManyDoublesAndTexts) {
  uint64_t state = 88172645463325252u;
  const auto next = [&] { return state ^= state << 13, state ^= state >> 7, state ^= state << 17; };
  for (int i = 0; i < 500; ++i) {
    Config c;
    c.optimizer.learning_rate = static_cast<double>(next() >> 11) * 0x1p-53 + 1e-300;
    c.model.rope_base = 1.5 + static_cast<double>(next() >> 11) * 0x1p-20;
    c.optimizer.eps = std::max(1e-320, static_cast<double>(next() >> 11) * 0x1p-1000);
    c.train.sample_prompt.clear();
    for (int k = 0; k < 12; ++k)
      c.train.sample_prompt += static_cast<char>(1 + next() % 127);  // every ASCII byte but 0
    c.data.train = {"x" + c.train.sample_prompt};                    // "~" comes back as "./~"
    ASSERT_EQ(parse(to_yaml(c)), c) << to_yaml(c);
  }
}

TEST(Config, DefaultsInTheTableAreTheDefaults) {
  for (const ConfigKey& key : config_keys()) {
    // Set everything else, then only this key back to what the table calls its default.
    Config c;
    const size_t dot = key.key.find('.');
    const Config back = parse(key.key.substr(0, dot) + ":\n  " + key.key.substr(dot + 1) + ": " +
                              key.default_value + "\n");
    EXPECT_EQ(back, c) << key.key;
    EXPECT_FALSE(key.help.empty()) << key.key;
    EXPECT_FALSE(key.allowed.empty()) << key.key;
    EXPECT_FALSE(key.type.empty()) << key.key;
  }
}

TEST(Config, BaseYamlIsTheTable) {
  EXPECT_EQ(test::read_whole_file(test::source_folder() + "/configs/base.yaml"), base_yaml())
      << "print it anew: LN_WRITE_BASE_YAML=1 core_test --gtest_filter=Config.WritesBaseYaml";
  EXPECT_EQ(load_config(test::source_folder() + "/configs/base.yaml", {}), Config{});
  for (const ConfigKey& key : config_keys()) {
    const std::string line = "\n  " + key.key.substr(key.key.find('.') + 1) + ": ";
    EXPECT_NE(base_yaml().find(line), std::string::npos) << key.key;
    EXPECT_NE(keys_help().find("  " + key.key + " = "), std::string::npos) << key.key;
  }
  std::istringstream lines(base_yaml() + keys_help());
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100u) << line;
}

TEST(Config, WritesBaseYaml) {
  if (std::getenv("LN_WRITE_BASE_YAML") == nullptr)
    GTEST_SKIP() << "writes configs/base.yaml only when LN_WRITE_BASE_YAML is set";
  std::ofstream(test::source_folder() + "/configs/base.yaml") << base_yaml();
}

TEST(Config, EveryFileInConfigsLoads) {
  int64_t files = 0;
  std::set<std::string> folders;
  for (const auto& item : std::filesystem::directory_iterator(test::source_folder() + "/configs")) {
    if (item.path().extension() != ".yaml") continue;
    ++files;
    SCOPED_TRACE(item.path().string());
    const std::string text = test::read_whole_file(item.path().string());
    EXPECT_EQ(text.rfind("# ", 0), 0u) << "a file opens with what it is";
    Config c;
    ASSERT_NO_THROW(c = load_config(item.path().string(), {}));
    EXPECT_TRUE(folders.insert(c.run.folder).second) << "two files write to " << c.run.folder;
    if (item.path().filename() == "base.yaml") continue;
    EXPECT_FALSE(c.data.train.empty());
    EXPECT_NE(text.find("configs/" + item.path().filename().string()), std::string::npos)
        << "the head says how it is started";
  }
  EXPECT_GE(files, 9);
}

TEST(Config, PaperModels) {
  struct Row {
    const char* file;
    int64_t layers, dim, heads, ffn_dim, tokens;
    double learning_rate;
  };
  const std::vector<Branch> branches{{2048, 1}, {4096, 2}, {8192, 4}, {16384, 6}, {32768, 12}};
  for (const Row& row : {Row{"longnet_125m", 12, 768, 12, 3072, 524288, 6e-4},
                         Row{"longnet_350m", 24, 1024, 16, 4096, 524288, 6e-4},
                         Row{"longnet_760m", 24, 1536, 16, 6144, 524288, 6e-4},
                         Row{"longnet_2b7", 32, 2560, 32, 10240, 4194304, 2e-4}}) {
    SCOPED_TRACE(row.file);
    const Config c = load_config(test::source_folder() + "/configs/" + row.file + ".yaml", {});
    EXPECT_EQ(c.model.layers, row.layers);
    EXPECT_EQ(c.model.dim, row.dim);
    EXPECT_EQ(c.model.heads, row.heads);
    EXPECT_EQ(c.model.ffn_dim, row.ffn_dim);
    EXPECT_EQ(c.model.branches, branches);
    EXPECT_EQ(c.model.norm, "sub_ln");
    EXPECT_EQ(c.model.position, "xpos");
    EXPECT_EQ(c.train.sequence_length * c.train.batch_size * c.train.accumulation, row.tokens);
    EXPECT_EQ(c.optimizer.learning_rate, row.learning_rate);
    EXPECT_EQ(c.optimizer.beta1, 0.9);
    EXPECT_EQ(c.optimizer.beta2, 0.98);
    EXPECT_EQ(c.optimizer.weight_decay, 0.01);
    EXPECT_EQ(c.optimizer.clip_norm, 2);
    EXPECT_EQ(c.optimizer.warmup_steps, 750);
    EXPECT_EQ(c.optimizer.schedule, "polynomial");
  }
}

// --- bad input ---

struct BadCase {
  const char* input;     // YAML text, or one key=value word
  const char* expected;  // the message, or its beginning
  const char* key;       // occurs in the message
};

class BadYaml : public testing::TestWithParam<BadCase> {};
TEST_P(BadYaml, SaysWhereAndWhat) {
  const BadCase& bad = GetParam();
  const std::string message = message_of([&] { parse(bad.input); });
  expect_one_line(message);
  EXPECT_EQ(message.substr(0, std::string(bad.expected).size()), bad.expected);
  EXPECT_EQ(message.rfind(kName, 0), 0u) << message;
  EXPECT_NE(message.find(bad.key), std::string::npos) << message;
}

const BadCase kBadYaml[] = {
    // unknown names
    {"model:\n  layer: 4\n",
     "configs/x.yaml:2: model.layer: unknown key; did you mean model.layers?", "model.layer"},
    {"# c\n\nmodel:\n  dim: 192\n  head: 6\n",
     "configs/x.yaml:5: model.head: unknown key; did you mean model.heads?", "model.head"},
    {"train:\n  learning_rate: 1\n",
     "configs/x.yaml:2: train.learning_rate: unknown key; did you mean optimizer.learning_rate?",
     "train.learning_rate"},
    {"run:\n  zzzzzzzzz: 1\n",
     "configs/x.yaml:2: run.zzzzzzzzz: unknown key; configs/base.yaml lists every key",
     "run.zzzzzzzzz"},
    {"modle:\n  dim: 4\n", "configs/x.yaml:1: modle: unknown section; did you mean model?",
     "modle"},
    {"wandb:\n  project: x\n",
     "configs/x.yaml:1: wandb: unknown section; allowed: model, data, train,", "wandb"},
    {"model.dim: 4\n",
     "configs/x.yaml:1: model.dim: a file holds sections; write model: {dim: ...}", "model.dim"},
    {"model:\n  ? [a, b]\n  : 1\n", "configs/x.yaml:2: model: a key is a list, not a word",
     "model"},
    {"model:\n  \"a\\nb\": 1\n", "configs/x.yaml:2: model.a\\nb: unknown key", "model.a"},
    // structure
    {"model:\n  dim: 64\n  heads: 4\n  dim: 128\n",
     "configs/x.yaml:4: model.dim: appears twice, first at configs/x.yaml:2; remove one",
     "model.dim"},
    {"model: {dim: 96}\ntrain: {seed: 1}\nmodel: {dim: 96}\n",
     "configs/x.yaml:3: model: appears twice, first at configs/x.yaml:1; merge the two", "model"},
    {"model: 5\n", "configs/x.yaml:1: model: is a single value, not a section", "model"},
    {"model: [1, 2]\n", "configs/x.yaml:1: model: is a list, not a section", "model"},
    {"- model\n- data\n", "configs/x.yaml:1: is a list, not sections", "model"},
    {"hello\n", "configs/x.yaml:1: is a single value, not sections", "model"},
    {"model: {dim: 96}\n---\nmodel: {dim: 96}\n",
     "configs/x.yaml:2: the one YAML document of a configuration ends before this line", "---"},
    {"model: {dim: 96}}\n", "configs/x.yaml:1: ", "YAML"},
    {"model: {dim: 96}\n]\n", "configs/x.yaml:2: ", "YAML"},
    {"model:\n  dim: [1\ntrain:\n", "configs/x.yaml:3: not valid YAML: ", "YAML"},
    {"model:\n\tdim: 5\n",
     "configs/x.yaml:2: not valid YAML: the line is indented with a tab; write spaces", "tab"},
    {"model:\n  dim: 96\n\theads: 4\n",
     "configs/x.yaml:3: not valid YAML: the line is indented with a tab; write spaces", "tab"},
    {"model:\n  dim: {a: 5\n\t\n",
     "configs/x.yaml:3: not valid YAML: the line is indented with a tab", "tab"},
    {"model:\n  dim: 96 # \xff\n",
     "configs/x.yaml:2: the byte 0xff is not UTF-8; save the file as UTF-8", "0xff"},
    {"run:\n  folder: \"a\\0b\"\n",
     "configs/x.yaml:2: run.folder: \"a\\x00b\": holds a zero byte, which no path can",
     "run.folder"},
    {"data:\n  train: [a, \"b\\0\"]\n",
     "configs/x.yaml:2: data.train: \"b\\x00\": holds a zero byte", "data.train"},
    {"data:\n  train: [a, ~nobody/x]\n",
     "configs/x.yaml:2: data.train: \"~nobody/x\": only your own \"~/\" is expanded", "data.train"},
    {"run:\n  folder: $LN_NO_SUCH/a\n",
     "configs/x.yaml:2: run.folder: \"$LN_NO_SUCH/a\": the environment variable LN_NO_SUCH is not "
     "set",
     "run.folder"},
    {"run:\n  folder: \"a/${LN_X\"\n",
     "configs/x.yaml:2: run.folder: \"a/${LN_X\": \"${\" begins no ${NAME}", "run.folder"},
    {"model:\n  dim: {a: 5\n", "configs/x.yaml:3: not valid YAML: ", "YAML"},
    {"model:\n  dim: *nothing\n", "configs/x.yaml:2: not valid YAML: ", "YAML"},
    {"model:\n  dim: 96\n\x04", "configs/x.yaml:3: holds the byte 0x04; a configuration is a text",
     "0x04"},
    // types
    {"model:\n  dim: abc\n",
     "configs/x.yaml:2: model.dim: \"abc\" is not an integer; allowed: 1 to 1048576", "model.dim"},
    {"model:\n  dim: 1.5\n", "configs/x.yaml:2: model.dim: \"1.5\" is not an integer", "model.dim"},
    {"model:\n  dim: 1_024\n", "configs/x.yaml:2: model.dim: \"1_024\" is not an integer",
     "model.dim"},
    {"model:\n  dim: 0x40\n", "configs/x.yaml:2: model.dim: \"0x40\" is not an integer",
     "model.dim"},
    {"model:\n  dim: ' 96'\n", "configs/x.yaml:2: model.dim: \" 96\" is not an integer",
     "model.dim"},
    {"model:\n  dim: 1e-3\n", "configs/x.yaml:2: model.dim: \"1e-3\" is not an integer",
     "model.dim"},
    {"train:\n  sequence_length: 32K\n",
     "configs/x.yaml:2: train.sequence_length: \"32K\" is not an integer; write 32768; allowed: 1 "
     "to",
     "train.sequence_length"},
    {"train:\n  seed: 99999999999999999999\n",
     "configs/x.yaml:2: train.seed: \"99999999999999999999\" is out of range", "train.seed"},
    {"train:\n  seed: 1e300\n", "configs/x.yaml:2: train.seed: \"1e300\" is not an integer",
     "train.seed"},
    {"train:\n  seed:\n", "configs/x.yaml:2: train.seed: has no value; allowed: 0 to",
     "train.seed"},
    {"train:\n  seed: ~\n", "configs/x.yaml:2: train.seed: has no value", "train.seed"},
    {"train:\n  seed: [1, 2]\n",
     "configs/x.yaml:2: train.seed: the value is a list, not an integer", "train.seed"},
    {"train:\n  seed: {a: 2}\n",
     "configs/x.yaml:2: train.seed: the value is a section, not an integer", "train.seed"},
    {"optimizer:\n  learning_rate: fast\n",
     "configs/x.yaml:2: optimizer.learning_rate: \"fast\" is not a number; allowed: above 0 to 10",
     "optimizer.learning_rate"},
    {"optimizer:\n  clip_norm: .inf\n", "configs/x.yaml:2: optimizer.clip_norm: \".inf\" is not a",
     "optimizer.clip_norm"},
    {"optimizer:\n  clip_norm: nan\n", "configs/x.yaml:2: optimizer.clip_norm: \"nan\" is not a",
     "optimizer.clip_norm"},
    {"model:\n  causal: yes\n", "configs/x.yaml:2: model.causal: \"yes\" is neither true nor false",
     "model.causal"},
    {"model:\n  position: [xpos]\n",
     "configs/x.yaml:2: model.position: the value is a list, not a word", "model.position"},
    {"data:\n  train: {a: b}\n",
     "configs/x.yaml:2: data.train: the value is a section, not a list of texts", "data.train"},
    {"data:\n  train: [a, [b]]\n", "configs/x.yaml:2: data.train: entry 2 is a list, not a text",
     "data.train"},
    {"data:\n  train: [a, '']\n", "configs/x.yaml:2: data.train: a path in the list is empty",
     "data.train"},
    // ranges and words
    {"model:\n  dim: 0\n", "configs/x.yaml:2: model.dim: 0 is out of range; allowed: 1 to 1048576",
     "model.dim"},
    {"model:\n  ffn_dim: 0\n", "configs/x.yaml:2: model.ffn_dim: 0 is out of range",
     "model.ffn_dim"},
    {"model:\n  vocab_size: 0\n", "configs/x.yaml:2: model.vocab_size: 0 is out of range",
     "model.vocab_size"},
    {"model:\n  layers: -3\n", "configs/x.yaml:2: model.layers: -3 is out of range",
     "model.layers"},
    {"optimizer:\n  beta1: 1\n",
     "configs/x.yaml:2: optimizer.beta1: 1 is out of range; allowed: at least 0 and below 1",
     "optimizer.beta1"},
    {"optimizer:\n  beta2: -0.1\n", "configs/x.yaml:2: optimizer.beta2: -0.1 is out of range",
     "optimizer.beta2"},
    {"optimizer:\n  learning_rate: 0\n",
     "configs/x.yaml:2: optimizer.learning_rate: 0 is out of range; allowed: above 0 to 10",
     "optimizer.learning_rate"},
    {"data:\n  validation_fraction: 1\n",
     "configs/x.yaml:2: data.validation_fraction: 1 is out of range; allowed: above 0 and below 1",
     "data.validation_fraction"},
    {"data:\n  validation_fraction: 0.0\n",
     "configs/x.yaml:2: data.validation_fraction: 0 is out of range", "data.validation_fraction"},
    {"data:\n  separator: 256\n",
     "configs/x.yaml:2: data.separator: 256 is out of range; allowed: -1 to 255", "data.separator"},
    {"data:\n  extensions: c,h\n",
     "configs/x.yaml:2: data.extensions: \"c\" is not a file ending; write endings with the dot",
     "data.extensions"},
    {"parallel:\n  data_ranks: 0\n", "configs/x.yaml:2: parallel.data_ranks: 0 is out of range",
     "parallel.data_ranks"},
    {"run:\n  log_every: 0\n", "configs/x.yaml:2: run.log_every: 0 is out of range",
     "run.log_every"},
    {"run:\n  folder: ''\n", "configs/x.yaml:2: run.folder: must not be empty", "run.folder"},
    {"model:\n  activation: gelo\n",
     "configs/x.yaml:2: model.activation: \"gelo\" is not one of gelu, swiglu; did you mean gelu?",
     "model.activation"},
    {"model:\n  norm: SubLN\n",
     "configs/x.yaml:2: model.norm: \"SubLN\" is not one of sub_ln, pre_ln; did you mean sub_ln?",
     "model.norm"},
    {"model:\n  position: alibi\n",
     "configs/x.yaml:2: model.position: \"alibi\" is not one of xpos, rope, none",
     "model.position"},
    {"run:\n  log_level: verbose\n",
     "configs/x.yaml:2: run.log_level: \"verbose\" is not one of debug, info, warn, error",
     "run.log_level"},
    // branches
    {"model:\n  branches: []\n", "configs/x.yaml:2: model.branches: 0 branches; allowed: 1 to 16",
     "model.branches"},
    {"model:\n  branches: [[1,1],[1,1],[1,1],[1,1],[1,1],[1,1],[1,1],[1,1],[1,1],[1,1],[1,1],[1,1],"
     "[1,1],[1,1],[1,1],[1,1],[1,1]]\n",
     "configs/x.yaml:2: model.branches: 17 branches; allowed: 1 to 16", "model.branches"},
    {"model:\n  branches: 512\n",
     "configs/x.yaml:2: model.branches: \"512\" is not a list of pairs", "model.branches"},
    {"model:\n  branches: [512, 1]\n",
     "configs/x.yaml:2: model.branches: entry 1 is not a pair [segment length, dilation]",
     "model.branches"},
    {"model:\n  branches: [[512, 1], [512, 1, 2]]\n",
     "configs/x.yaml:2: model.branches: entry 2 is not a pair", "model.branches"},
    {"model:\n  branches: [[512, 0]]\n",
     "configs/x.yaml:2: model.branches: branch [512, 0]: dilation 0 is out of range",
     "model.branches"},
    {"model:\n  branches: [[0, 1]]\n",
     "configs/x.yaml:2: model.branches: branch [0, 1]: segment length 0 is out of range",
     "model.branches"},
    {"model:\n  branches: [[2048, four]]\n",
     "configs/x.yaml:2: model.branches: \"four\" is not an integer", "model.branches"},
    // rules between keys
    {"model:\n  layers: 2\n  dim: 190\n",
     "configs/x.yaml:3: model.dim 190 is not divisible by model.heads 6; nearest: model.heads 1 or "
     "5, or model.dim 180 or 192",
     "model.dim"},
    {"model:\n  heads: 5\n",
     "configs/x.yaml:2: model.dim 192 is not divisible by model.heads 5; nearest: model.heads 4 or "
     "6, or model.dim 190 or 200",
     "model.heads"},
    {"model:\n  heads: 48\n",
     "configs/x.yaml:2: model.dim 192 / model.heads 48 is a head dimension of 4; allowed: 8 to "
     "256; "
     "nearest: model.heads 16 or 24, or model.dim 384",
     "model.heads"},
    {"model:\n  dim: 4096\n  heads: 8\n",
     "configs/x.yaml:3: model.dim 4096 / model.heads 8 is a head dimension of 512; allowed: 8 to "
     "256; nearest: model.heads 16 or 32, or model.dim 2048",
     "model.heads"},
    {"model:\n  dim: 54\n",
     "configs/x.yaml:2: model.dim 54 / model.heads 6 is a head dimension of 9; model.position xpos "
     "needs an even one; nearest: model.heads 1 or 3, or model.dim 48 or 60",
     "model.position"},
    {"model:\n  position: xpos\n  causal: false\n",
     "configs/x.yaml:2: model.position xpos needs model.causal true; set model.position to rope",
     "model.causal"},
    {"train:\n  sequence_length: 65536\nmodel:\n  branches: [[512, 1], [100000, 16]]\n",
     "configs/x.yaml:4: model.branches: [100000, 16] spans 65536 tokens of a sequence; allowed "
     "with "
     "model.position xpos: 49152; set model.position to rope",
     "model.branches"},
    {"model:\n  causal: false\n  position: rope\ntrain:\n  sample_every: 10\n",
     "configs/x.yaml:5: train.sample_every 10 needs model.causal true", "train.sample_every"},
    {"train:\n  sample_every: 10\n  sample_prompt: ''\n",
     "configs/x.yaml:3: train.sample_prompt is empty", "train.sample_prompt"},
    // not offered
    {"model:\n  dropout: 0.1\n", "configs/x.yaml:2: model.dropout: dropout is not supported",
     "model.dropout"},
    {"model:\n  attention_dropout: 0\n",
     "configs/x.yaml:2: model.attention_dropout: dropout is not supported", "attention_dropout"},
    {"model:\n  kv_heads: 2\n",
     "configs/x.yaml:2: model.kv_heads: grouped-query attention is not supported: heads that share",
     "model.kv_heads"},
    {"parallel:\n  tensor_ranks: 2\n",
     "configs/x.yaml:2: parallel.tensor_ranks: tensor parallelism is not supported",
     "parallel.sequence_ranks"},
    {"parallel:\n  pipeline_ranks: 2\n",
     "configs/x.yaml:2: parallel.pipeline_ranks: pipeline parallelism is not supported",
     "parallel.sequence_ranks"},
    {"train:\n  fp16: true\n", "configs/x.yaml:2: train.fp16: fp16 is not supported", "train.fp16"},
    {"run:\n  dtype: float16\n", "configs/x.yaml:2: run.dtype: fp16 is not supported", "run.dtype"},
    {"run:\n  dtype: bfloat16\n", "configs/x.yaml:2: run.dtype: use the name bf16", "run.dtype"},
    {"run:\n  backend: gpu\n", "configs/x.yaml:2: run.backend: use the name cuda", "run.backend"},
};
INSTANTIATE_TEST_SUITE_P(Config, BadYaml, testing::ValuesIn(kBadYaml));

class BadWord : public testing::TestWithParam<BadCase> {};
TEST_P(BadWord, SaysWhichWordAndWhat) {
  const BadCase& bad = GetParam();
  const std::string message = message_of([&] { parse("", {bad.input}); });
  expect_one_line(message);
  EXPECT_EQ(message.substr(0, std::string(bad.expected).size()), bad.expected);
  EXPECT_EQ(message.rfind("key=value word \"", 0), 0u) << message;
  EXPECT_NE(message.find(bad.key), std::string::npos) << message;
}

const BadCase kBadWords[] = {
    {"train.step=5", "key=value word \"train.step=5\": unknown key; did you mean train.steps?",
     "train.step"},
    {"steps=5", "key=value word \"steps=5\": unknown key; did you mean train.steps?", "steps"},
    {"optimizer.beat2=0.9",  // beta1 is near too and comes first in the table
     "key=value word \"optimizer.beat2=0.9\": unknown key; did you mean optimizer.beta2?",
     "optimizer.beta2"},
    {"lr=5", "key=value word \"lr=5\": unknown key; configs/base.yaml lists every key", "lr"},
    {"train.steps", "key=value word \"train.steps\": is not a pair; write section.name=value",
     "train.steps"},
    {"=5", "key=value word \"=5\": is not a pair", "=5"},
    {"", "key=value word \"\": is not a pair", "section.name=value"},
    {"model.dim=abc",
     "key=value word \"model.dim=abc\": \"abc\" is not an integer; allowed: 1 to 1048576",
     "model.dim"},
    {"model.dim=", "key=value word \"model.dim=\": \"\" is not an integer", "model.dim"},
    {"model.dim=-1", "key=value word \"model.dim=-1\": -1 is out of range", "model.dim"},
    {"model.causal=True",
     "key=value word \"model.causal=True\": \"True\" is neither true nor false", "model.causal"},
    {"model.branches=512", "key=value word \"model.branches=512\": \"512\" is not a list of pairs",
     "model.branches"},
    {"model.branches=[[512,1",
     "key=value word \"model.branches=[[512,1\": the list cannot be read: ", "model.branches"},
    {"model.branches=[[512,1],7]",
     "key=value word \"model.branches=[[512,1],7]\": entry 2 is not a pair", "model.branches"},
    {"data.train=[a,{b: c}]", "key=value word \"data.train=[a,{b: c}]\": entry 2 is a section",
     "data.train"},
    {"model.heads=7",
     "key=value word \"model.heads=7\": model.dim 192 is not divisible by model.heads 7; nearest: "
     "model.heads 6 or 8, or model.dim 182 or 196",
     "model.heads"},
    {"model.causal=false",
     "key=value word \"model.causal=false\": model.position xpos needs model.causal true; set",
     "rope"},
    {"model.dropout=0.1", "key=value word \"model.dropout=0.1\": dropout is not supported",
     "dropout"},
    {"parallel.tensor=2",
     "key=value word \"parallel.tensor=2\": tensor parallelism is not supported",
     "parallel.tensor"},
    {"run.dtype=fp16", "key=value word \"run.dtype=fp16\": fp16 is not supported", "run.dtype"},
    {"run.backend=gpu", "key=value word \"run.backend=gpu\": use the name cuda", "gpu"},
    {"run.attention=cudnn",
     "key=value word \"run.attention=cudnn\": run.attention cudnn selects GPU kernels; with "
     "run.backend cpu only auto is allowed; set run.attention to auto, or run.backend to cuda",
     "run.backend"},
    {"run.attention=cuDNN",
     "key=value word \"run.attention=cuDNN\": \"cuDNN\" is not one of auto, "
     "cudnn, native, plain; did you mean cudnn?",
     "run.attention"},
    {"run.folder=", "key=value word \"run.folder=\": must not be empty", "run.folder"},
    {"a\nb=5", "key=value word \"a\\nb=5\": unknown key", "a\\nb"},
};
INSTANTIATE_TEST_SUITE_P(Config, BadWord, testing::ValuesIn(kBadWords));

TEST(Config, BadFiles) {
  const TemporaryFolder folder;
  const std::string missing = folder.file("no.yaml");
  std::string message = message_of([&] { load_config(missing, {}); });
  EXPECT_EQ(message, missing + ": cannot be read: No such file or directory");
  message = message_of([&] { load_config(folder.path(), {}); });
  EXPECT_EQ(message, folder.path() + ": is a folder, not a regular file");
  const std::string path = folder.write("a.yaml", "\nmodel:\n  dims: 5\n");
  message = message_of([&] { load_config(path, {}); });
  EXPECT_EQ(message, path + ":3: model.dims: unknown key; did you mean model.dim?");
}

TEST(Config, CheckConfigNamesTheKey) {
  Config c;
  c.optimizer.eps = std::numeric_limits<double>::quiet_NaN();
  std::string message = message_of([&] { check_config(c); });
  expect_one_line(message);
  EXPECT_EQ(message, "optimizer.eps: nan is out of range; allowed: above 0 to 1");
  c = {};
  c.model.heads = 0;  // must not be divided by
  EXPECT_EQ(message_of([&] { check_config(c); }),
            "model.heads: 0 is out of range; allowed: 1 to 4096");
  c = {};
  c.model.dim = 191;  // a prime: only other dims are near
  EXPECT_NE(message_of([&] { check_config(c); }), "");
}

TEST(Config, EveryRemedyWorks) {
  // Whatever heads or dim a message proposes must itself pass.
  for (const std::string position : {"xpos", "none"}) {
    for (int64_t dim = 1; dim <= 300; dim += 7) {
      for (int64_t heads = 1; heads <= 24; ++heads) {
        Config c;
        c.model.position = position;
        c.model.dim = dim;
        c.model.heads = heads;
        const std::string message = message_of([&] { check_config(c); });
        for (const bool is_dim : {true, false}) {
          const size_t remedies = message.find("nearest: ");
          if (remedies == std::string::npos) continue;
          const std::string word = is_dim ? "model.dim " : "model.heads ";
          const size_t at = message.find(word, remedies);
          if (at == std::string::npos) continue;
          std::istringstream numbers(message.substr(at + word.size()));
          int64_t value = 0;
          std::string comma_or;
          while (numbers >> value) {
            Config mended = c;
            (is_dim ? mended.model.dim : mended.model.heads) = value;
            ASSERT_EQ(message_of([&] { check_config(mended); }), "") << message;
            if (numbers.peek() == ',' || !(numbers >> comma_or) || comma_or != "or") break;
          }
        }
        if (!message.empty()) {
          EXPECT_NE(message.find("nearest: "), std::string::npos) << message;
        }
      }
    }
  }
}

TEST(Config, RandomBytesOnlyEverThrowErrors) {
  const std::string seed_text = base_yaml();
  uint64_t state = 42;
  const auto next = [&] { return state = state * 6364136223846793005u + 1442695040888963407u; };
  int64_t refused = 0;
  for (int i = 0; i < 300; ++i) {
    std::string text = seed_text.substr((next() >> 33) % 2000, 600);
    for (int k = 0; k < 4; ++k)
      text[(next() >> 33) % text.size()] = "\n :-[]{},#&*!|>'\"%@`ab1\t"[(next() >> 33) % 24];
    const std::string message = message_of([&] { parse(text); });
    if (message.empty()) continue;
    ++refused;
    expect_one_line(message);
  }
  EXPECT_GT(refused, 50);
}

}  // namespace
}  // namespace longnet
