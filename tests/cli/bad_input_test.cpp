// Command lines that cannot work: a non-zero exit and exactly one line that says why.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <sstream>

#include "cli/program.h"
#include "core/device_runtime.h"
#include "support/compare.h"

namespace longnet::test {
namespace {

struct BadLine {
  std::string arguments;
  std::string message;  // part of the line
};

class BadInput : public testing::Test {
 protected:
  void SetUp() override {
    program.write_tiny_config();
    const auto tensor = [](std::vector<int64_t> shape) {
      int64_t elements = 1;
      for (int64_t extent : shape) elements *= extent;
      return file_tensor("F32", shape, random_values(elements, 1));
    };
    const FileTensor good = tensor({1, 32, 2, 8});
    const TemporaryFolder& folder = program.folder();
    write_tensors(folder, "good.st", {{"q", good}, {"k", good}, {"v", good}});
    write_tensors(folder, "no_v.st", {{"q", good}, {"k", good}});
    write_tensors(folder, "longer.st", {{"q", good}, {"k", good}, {"v", tensor({1, 33, 2, 8})}});
    const FileTensor narrow = tensor({1, 32, 2, 4}), odd = tensor({1, 32, 2, 9});
    write_tensors(folder, "narrow.st", {{"q", narrow}, {"k", narrow}, {"v", narrow}});
    write_tensors(folder, "odd.st", {{"q", odd}, {"k", odd}, {"v", odd}});
    write_tensors(folder, "flat.st", {{"q", tensor({32, 2, 8})}, {"k", good}, {"v", good}});
    FileTensor whole = file_tensor("I64", {1, 32, 2, 8}, std::vector<int64_t>(512, 1));
    write_tensors(folder, "whole.st", {{"q", good}, {"k", whole}, {"v", good}});
    write_tensors(folder, "limits.st",
                  {{"q", good},
                   {"k", good},
                   {"v", good},
                   {"last_visible", file_tensor("I64", {32}, std::vector<int64_t>(32, 1))}});
    const std::string bytes = read_whole_file(program.file("good.st"));
    ASSERT_EQ(::mkfifo(program.file("pipe").c_str(), 0600), 0);
    folder.write("cut.st", bytes.substr(0, bytes.size() - 8));
  }

  void expect_refused(const std::vector<BadLine>& lines) {
    std::vector<std::string> command_lines;
    for (const BadLine& line : lines) command_lines.push_back(line.arguments);
    const std::vector<Outcome> outcomes = program.run_all(command_lines);
    for (size_t i = 0; i < lines.size(); ++i) {
      const BadLine& line = lines[i];
      const Outcome& outcome = outcomes[i];
      EXPECT_TRUE(outcome.exit_code == 1 || outcome.exit_code == 2)
          << line.arguments << ": exit code " << outcome.exit_code;
      EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1)
          << line.arguments << ": " << outcome.err;
      EXPECT_EQ(outcome.err.rfind("error: ", 0), 0u) << line.arguments << ": " << outcome.err;
      EXPECT_NE(outcome.err.find(line.message), std::string::npos)
          << line.arguments << ": " << outcome.err;
      EXPECT_EQ(outcome.out, "") << line.arguments;
    }
  }
  Program program;
};

TEST_F(BadInput, Usage) {
  expect_refused(
      {{"", "a subcommand is missing; allowed: train, evaluate,"},
       {"trian tiny.yaml", "unknown subcommand \"trian\"; did you mean train?; see longnet --help"},
       {"--jsn", "unknown option \"--jsn\""},
       {"train", "CONFIG is required; see longnet train --help"},
       {"train ''", "CONFIG: the path is empty"},
       {"train '$LN_NO_SUCH/x'", "the environment variable LN_NO_SUCH is not set"},
       {"evaluate", "CHECKPOINT is required"},
       {"evaluate run --jsn", "did you mean --json?"},
       {"evaluate run --split valid", "--split: \"valid\" is not one of validation, train, test"},
       {"evaluate run --samples nan", "\"nan\" is not a whole number; allowed: 0 to"},
       {"evaluate run --samples -1", "\"-1\" is out of range; allowed: 0 to"},
       {"attend", "IN is required"},
       {"attend good.st", "OUT is required"},
       {"attend good.st out.st", "--branch is required"},
       {"attend good.st out.st --branch 16:1 --frob",
        "unknown option \"--frob\"; allowed: --help, --branch,"},
       {"attend good.st out.st --branch 16:1 --position abs",
        "--position: \"abs\" is not one of none, rope, xpos"},
       {"attend good.st out.st --branch 16:1 --rope-base nan", "allowed: 1 to"},
       {"attend good.st out.st --branch 16:1 --scale -1", "allowed: 0 to"},
       {"plan", "CONFIG is required"},
       {"plan tiny.yaml --ranks 0", "--ranks: \"0\" is out of range; allowed: 1 to"},
       {"plan tiny.yaml --ranks two", "--ranks: \"two\" is not a whole number; allowed: 1 to"},
       {"plan tiny.yaml --rank -2", "--rank: \"-2\" is out of range; allowed: -1 to"},
       {"plan tiny.yaml --json=x", "--json: \"x\" is not allowed"},
       {"plan tiny.yaml --rank 1 --rank 2", "--rank: is given more than once; keep one"},
       {"bench", "a subcommand is missing; allowed: attention, step, collectives"},
       {"bench stpe", "did you mean step?; see longnet bench --help"},
       {"bench attention --head-dim 4", "--head-dim: \"4\" is out of range; allowed: 8 to 256"},
       {"bench collectives --growth 1", "--growth: \"1\" is out of range"},
       {"bench collectives --timeout-s nan",
        "--timeout-s: \"nan\" is not allowed; allowed: 0 to"}});
}

TEST_F(BadInput, Attend) {
  const std::string colon = "allowed: W:R";
  expect_refused(
      {{"attend good.st out.st --branch 512", "--branch \"512\": " + colon},
       {"attend good.st out.st --branch 0:1", colon},
       {"attend good.st out.st --branch 16:-1", colon},
       {"attend good.st out.st --branch 16:1x", colon},
       {"attend good.st out.st --branch 16:1 --branch ''", colon},
       {"attend good.st out.st --branch 99999999999999999999:1", colon},
       {"attend none.st out.st --branch 16:1", "none.st: cannot be read"},
       {"attend tiny.yaml out.st --branch 16:1", "tiny.yaml: the header claims"},
       {"attend cut.st out.st --branch 16:1", "it is cut off"},
       {"attend no_v.st out.st --branch 16:1", "no_v.st: has no tensor \"v\""},
       {"attend longer.st out.st --branch 16:1", "v has shape [1, 33, 2, 8], q has [1, 32, 2, 8]"},
       {"attend narrow.st out.st --branch 16:1", "head dimension 4; allowed: 8 to 256"},
       {"attend odd.st out.st --branch 16:1 --position rope", "needs an even head dimension"},
       {"attend flat.st out.st --branch 16:1", "q has 3 axes; allowed: [B, N, H, D]"},
       {"attend whole.st out.st --branch 16:1", "k is I64; allowed: F32, F64, BF16"},
       {"attend limits.st out.st --branch 16:1", "last_visible must be I64 [B, N]"},
       {"attend good.st out.st --branch 16:1 --position xpos", "xpos needs --causal"},
       {"attend good.st none/out.st --branch 16:1", "none/out.st: cannot be written"},
       {"attend good.st . --branch 16:1", ".: is a folder; name a file"},
       {"attend good.st ./good.st --branch 16:1", "OUT is the same file as IN"}});
  EXPECT_FALSE(std::filesystem::exists(program.file("out.st"))) << "a refused run leaves no OUT";
}

TEST_F(BadInput, PlanAndBench) {
  expect_refused(
      {{"plan none.yaml", "none.yaml: cannot be read"},
       {"plan /dev/zero", "/dev/zero: is a device, not a regular file"},
       {"plan pipe", "pipe: is a pipe, not a regular file"},
       {"plan tiny.yaml --ranks 2 --rank 2", "--rank 2: the sequence has 2 ranks"},
       {"plan tiny.yaml --ranks 1000 --rank 500", "holds no token"},
       {"plan tiny.yaml --ranks 3 parallel.data_ranks=2", "parallel.data_ranks=2 must divide"},
       {"plan tiny.yaml model.hedas=3", "did you mean model.heads?"},
       {"plan tiny.yaml model.dim=33", "not divisible by model.heads"},
       {"bench attention --branch 5", "--branch \"5\": allowed: W:R"},
       {"bench attention --attention cudnn", "--attention cudnn selects GPU kernels"},
       {"bench attention --attention fast", "\"fast\" is not one of auto, cudnn, native, plain"},
       {"bench attention --case 512:1,native", "--case \"512:1,native\": allowed: W:R,ATTENTION"},
       {"bench attention --case 512:1,auto,abs", "allowed: W:R,ATTENTION,POSITION"},
       {"bench attention --case 5,auto,none", "\"5\": allowed: W:R"},
       {"bench attention --case 512:1,native,none", "--attention native selects GPU kernels"},
       {"bench attention --case 512:1,auto,none --branch 8:1", "--branch excludes --case"},
       {"bench attention --dtype f16", "--dtype: \"f16\" is not one of f32, bf16"},
       {"bench attention --position rope --head-dim 9", "needs an even --head-dim, not 9"},
       {"bench attention --position xpos --full", "--position xpos needs the causal mask"},
       {"bench step none.yaml", "none.yaml: cannot be read"},
       {"bench step tiny.yaml parallel.sequence_ranks=3", "parallel.sequence_ranks (3)"},
       {"bench collectives --min-bytes 100 --max-bytes 10",
        "--min-bytes 100 is larger than --max-bytes 10"}});
}

TEST_F(BadInput, Generate) {
  ASSERT_EQ(program.run("train tiny.yaml train.steps=1 optimizer.warmup_steps=0").exit_code, 0);
  const std::string generate = "generate run/step-00000001 ";
  expect_refused(
      {{"generate none", "none: no such checkpoint"},
       {"generate run", "is a run's folder, not a checkpoint"},
       {generate + "--tokens 0", "--tokens: \"0\" is out of range"},
       {generate + "--temperature nan", "\"nan\" is not allowed; allowed: 0 to 100"},
       {generate + "--top-k -1", "--top-k: \"-1\" is out of range"},
       {generate + "--prompt ''", "the prompt is empty"},
       {generate + "--prompt-tokens 1,256", "256 is outside the vocabulary"},
       {generate + "--prompt-tokens 1,x", "--prompt-tokens: \"x\" is not a whole number"},
       {generate + "--prompt-tokens ''", "--prompt-tokens: \"\" is not a whole number"},
       {generate + "--prompt-tokens", "--prompt-tokens: a value is missing"},
       {generate + "--seed -1", "--seed: \"-1\" is out of range; allowed: 0 to"},
       {generate + "--seed 99999999999999999999", "is out of range; allowed: 0 to"},
       {generate + "--tokens 1e3", "\"1e3\" is not a whole number"},
       {generate + "--prompt-file none.txt", "none.txt: cannot be read: No such file or directory"},
       {generate + "--prompt-file .", ".: is a folder, not a regular file"},
       {generate + "--prompt-file /dev/zero", "/dev/zero: is a device"},
       {generate + "--prompt-file pipe", "pipe: is a pipe"},
       {generate + "--out none/x", "none/x: "},
       {generate + "--out run", "run: "},
       {generate + "--prompt a --prompt-file text.txt", "excludes"}});
}

TEST_F(BadInput, StandardOutputThatCannotBeWritten) {
  ASSERT_EQ(program.run("train tiny.yaml train.steps=1 optimizer.warmup_steps=0").exit_code, 0);
  const std::string checkpoint = "run/step-00000001";
  std::vector<BadLine> lines;
  for (const std::string& command :
       {std::string("--help"), std::string("--version"), std::string("train --help"),
        std::string("plan tiny.yaml"), std::string("plan tiny.yaml --json"),
        "evaluate " + checkpoint, "evaluate " + checkpoint + " --json",
        "generate " + checkpoint + " --tokens 3",
        std::string("bench attention --tokens 64 --heads 1 --head-dim 8 --repetitions 1")}) {
    lines.push_back({command + " >/dev/full", "standard output cannot be written: No space left"});
    lines.push_back({command + " >&-", "standard output cannot be written: Bad file descriptor"});
  }
  expect_refused(lines);
}

TEST_F(BadInput, NextTokenLossOfAModelThatSeesIt) {
  const std::string encoder = " model.causal=false model.position=rope";
  expect_refused({{"train tiny.yaml" + encoder,
                   "model.causal=false: training and evaluation score the next token"}});
  EXPECT_FALSE(std::filesystem::exists(program.file("run"))) << "a refused run leaves no folder";
  EXPECT_EQ(program.run("plan tiny.yaml" + encoder).exit_code, 0);
  EXPECT_EQ(program.run("bench step tiny.yaml --steps 1" + encoder).exit_code, 0);
}

TEST_F(BadInput, BytesThatAreNotUtf8) {
  const std::string bad = "$(printf 'a\\377b')";
  expect_refused(
      {{"train tiny.yaml run.folder=" + bad, "run.folder=a\\xffb\": \"a\\xffb\" is not UTF-8"},
       {"train tiny.yaml data.train=" + bad, "is not UTF-8 at byte 1"},
       {"train tiny.yaml data.cache=" + bad, "is not UTF-8 at byte 1"},
       {"train tiny.yaml train.sample_prompt=" + bad, "is not UTF-8 at byte 1"},
       {"evaluate " + bad, "a\\xffb: no such checkpoint"}});
  // An argument that is only opened may have any name; what the result says of it is escaped.
  ASSERT_EQ(program.run("attend good.st " + bad + ".st --branch 16:1").exit_code, 0);
}

TEST_F(BadInput, LimitsBelowWhatMpiNeeds) {
  const std::vector<std::pair<std::string, std::string>> limits{
      {"ulimit -n 20", "ulimit -n allows 20 open files, the start of MPI needs 64"},
      {"ulimit -v 125000", "ulimit -v allows 128000000 bytes, the start of MPI needs 536870912"},
      {"ulimit -f 1000", "ulimit -f allows 512000 bytes, the start of MPI needs 5242880"}};
  for (const auto& [limit, message] : limits) {
    const Outcome outcome = program.run_limited("plan tiny.yaml", limit);
    EXPECT_EQ(outcome.exit_code, 1) << limit;
    EXPECT_EQ(outcome.err.rfind("error: " + message, 0), 0u) << outcome.err;
    EXPECT_EQ(outcome.err.find('\n'), outcome.err.size() - 1) << outcome.err;
  }
}

TEST_F(BadInput, ListsWithEmptyEntriesAndDeepYaml) {
  program.folder().write("deep.yaml", "a: " + std::string(5000, '['));
  for (const auto& [arguments, message] : std::vector<std::pair<std::string, std::string>>{
           {"plan tiny.yaml --ranks 1,,2", "--ranks: \"1,,2\" has an empty entry"},
           {"plan tiny.yaml --ranks=1,", "--ranks: \"1,\" has an empty entry"},
           {"plan deep.yaml", "deep.yaml:1: not valid YAML: nested too deep"}}) {
    const Outcome outcome = program.run(arguments);
    EXPECT_NE(outcome.exit_code, 0) << arguments;
    EXPECT_NE(outcome.err.find(message), std::string::npos) << outcome.err;
  }
}

TEST_F(BadInput, MemoryLimits) {
  // With ulimit -v the first allocation that fails may be an arena's or any other one.
  const std::string train =
      "train tiny.yaml 'model.branches=[[2048,1]]' data.train=long.txt train.batch_size=1 "
      "train.sequence_length=";
  program.folder().write("long.txt", std::string(6000000, 'x'));
  const Outcome outcome = program.run_limited(train + "1048576", "ulimit -v 700000");
  EXPECT_EQ(outcome.exit_code, 1);
  const size_t line = outcome.err.find("error: out of memory: ");
  ASSERT_NE(line, std::string::npos) << outcome.err;
  for (const char* part : {" bytes wanted", "ulimit -v allows 716800000 bytes", "use more ranks"})
    EXPECT_NE(outcome.err.find(part, line), std::string::npos) << outcome.err;
}

TEST_F(BadInput, ThreadsThatCannotBeStarted) {
  // The stacks of 3000 threads do not fit; libgomp would end the process with its own line.
  const Outcome outcome =
      program.run_limited("train tiny.yaml parallel.threads=3000", "ulimit -v 3000000");
  EXPECT_EQ(outcome.exit_code, 1);
  for (const char* part : {"error: 3000 threads are wanted, ", " can be started (",
                           "ulimit -v allows 3072000000 bytes", "set parallel.threads="})
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
  EXPECT_EQ(outcome.err.find("libgomp"), std::string::npos) << outcome.err;
}

/// What run.backend=cuda says on a machine without a GPU, in this build.
std::string cuda_refusal() {
  return device_runtime::built_with_cuda()
             ? "run.backend=cuda: no GPU on "
             : "run.backend=cuda: this program was built without CUDA; set run.backend=cpu";
}

TEST_F(BadInput, CudaWithoutAGpu) {
  const device_runtime::Availability found = device_runtime::availability();
  if (!found.devices.empty()) GTEST_SKIP() << "this machine has a GPU";
  expect_refused(
      {{"train tiny.yaml run.backend=cuda", cuda_refusal()},
       {"bench step tiny.yaml run.backend=cuda", cuda_refusal()},
       {"bench attention --backend cuda", cuda_refusal()},
       {"train tiny.yaml run.attention=plain", "with run.backend cpu only auto is allowed"},
       {"train tiny.yaml run.backend=cuda run.attention=cudn", "did you mean cudnn?"},
       {"train tiny.yaml run.backend=gpu", "run.backend=gpu\": use the name cuda"}});
  if (device_runtime::built_with_cuda()) {
    expect_refused({{"train tiny.yaml run.backend=cuda", found.reason}});
  }
  EXPECT_FALSE(std::filesystem::exists(program.file("run"))) << "a refused run leaves no folder";
  // A plan computes nothing, so it needs no GPU.
  EXPECT_EQ(program.run("plan tiny.yaml run.backend=cuda").exit_code, 0);
}

// What a rank of Open MPI's mpirun sees of it if the program is linked with another MPI: every rank
// would train, all into one folder.
TEST_F(BadInput, StartedByAnotherMpisLauncher) {
  ::setenv("OMPI_COMM_WORLD_SIZE", "2", 1);
  expect_refused({{"train tiny.yaml", "2 ranks were started, but each is alone"}});
  ::setenv("OMPI_COMM_WORLD_SIZE", "1", 1);
  EXPECT_EQ(program.run("plan tiny.yaml").exit_code, 0);
  ::unsetenv("OMPI_COMM_WORLD_SIZE");
  EXPECT_FALSE(std::filesystem::exists(program.file("run")));
}

TEST_F(BadInput, TwoRanksSayItOnce) {
  ASSERT_EQ(program.run("train tiny.yaml train.steps=1 optimizer.warmup_steps=0").exit_code, 0);
  // mpirun adds its own notice about the exit code; of the program there must be one line.
  std::vector<BadLine> lines{
      {"attend no_v.st out.st --branch 16:1", "has no tensor \"v\""},
      {"attend good.st none/out.st --branch 16:1", "cannot be written"},
      {"generate run/step-00000001", "runs on one rank, this job has 2; start it without mpirun"},
      {"bench attention", "runs on one rank"},
      {"bench step tiny.yaml parallel.sequence_ranks=3", "parallel.sequence_ranks (3)"},
      {"plan tiny.yaml model.hedas=3", "did you mean model.heads?"},
      {"train none.yaml", "none.yaml: cannot be read"},
      {"train tiny.yaml model.hedas=3", "did you mean model.heads?"},
      {"train tiny.yaml data.train=none.txt", "no such file or folder"},
      {"train tiny.yaml parallel.sequence_ranks=3", "parallel.sequence_ranks (3)"},
      {"train tiny.yaml checkpoint.resume=none/step-00000001", "no such checkpoint"},
      {"train tiny.yaml run.folder=wild train.steps=200 optimizer.learning_rate=10 "
       "optimizer.weight_decay=1 optimizer.clip_norm=0 checkpoint.every=1",
       "stopped before the weights changed; there is no good checkpoint"},
      {"evaluate none", "none: no such checkpoint"},
      {"evaluate run/step-00000001 parallel.data_ranks=3", "parallel.data_ranks (3)"},
      {"evaluate run/step-00000001 model.dim=64", "only model.branches may be set"}};
  if (device_runtime::availability().devices.empty())
    lines.push_back({"train tiny.yaml run.backend=cuda", cuda_refusal()});
  for (const BadLine& line : lines) {
    const Outcome outcome = program.run(line.arguments, 2);
    EXPECT_NE(outcome.exit_code, 0) << line.arguments;
    std::istringstream text(outcome.err);
    int errors = 0;
    for (std::string row; std::getline(text, row);) {
      if (row.rfind("error", 0) != 0) continue;
      ++errors;
      EXPECT_EQ(row.rfind("error [rank 0 of 2 on ", 0), 0u) << row;
      EXPECT_NE(row.find(line.message), std::string::npos) << row;
    }
    EXPECT_EQ(errors, 1) << line.arguments << ": " << outcome.err;
    EXPECT_EQ(outcome.err.find("MPI_ABORT"), std::string::npos) << outcome.err;
  }
}

}  // namespace
}  // namespace longnet::test
