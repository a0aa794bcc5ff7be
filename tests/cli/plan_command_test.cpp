// `longnet plan`: fields against numbers worked out by hand, bytes against what real runs count.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <sstream>

#include "cli/program.h"

namespace longnet::test {
namespace {

using Json = nlohmann::json;

Json plan(const Program& program, const std::string& options) {
  const Outcome outcome = program.run("plan tiny.yaml --json " + options);
  if (outcome.exit_code != 0) throw std::runtime_error(outcome.err);
  return Json::parse(outcome.out);
}

/// The last line of run/metrics.jsonl.
Json last_step(const Program& program) {
  std::istringstream lines(read_whole_file(program.file("run/metrics.jsonl")));
  std::string last;
  for (std::string line; std::getline(lines, line);) last = line;
  return Json::parse(last);
}

TEST(Plan, FourBillionTokensCostNoMoreThanFew) {
  Program program;
  program.write_tiny_config();
  const auto begin = std::chrono::steady_clock::now();
  const int64_t tokens = int64_t{1} << 32, ranks = 4, local = tokens / ranks;
  const Json r = plan(program, "--ranks 4 train.sequence_length=4294967296");
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(took.count(), 10) << "a list of 2^26 segments takes longer";
  EXPECT_EQ(r["branches"][0]["local_segments"], local / 16);
  EXPECT_EQ(r["branches"][1]["local_segments"], local / 128);
  // As by hand below: 136 pairs of a segment of 16; 32 rows of one of 128, 528 pairs; H 4, B 2.
  const double pairs =
      static_cast<double>(local / 16) * 136 + static_cast<double>(local / 128) * 528;
  EXPECT_EQ(r["flops_per_step"]["attention"], pairs * 4 * 2 * 2 * 12.0 * 8);
}

TEST(Plan, ASegmentOverAMillionRanksCostsNoMoreThanOneOverTwo) {
  Program program;
  program.write_tiny_config();
  const int64_t tokens = int64_t{1} << 40, ranks = int64_t{1} << 20, local = tokens / ranks;
  // One branch over all ranks, and one whose dilation leaves most ranks without a row.
  for (const int64_t dilation : {int64_t{4}, int64_t{4} << 20}) {
    const auto begin = std::chrono::steady_clock::now();
    const Json r = plan(
        program, fmt::format("--ranks {0} --rank 1 train.sequence_length={1} model.position=rope "
                             "'model.branches=[[16,1],[{1},{2}]]'",
                             ranks, tokens, dilation));
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    EXPECT_LT(took.count(), 5) << "the program itself takes 0.6 s on an idle machine";
    EXPECT_EQ(r["branches"][1]["gathered_ranks"], Json::array({ranks}));
    EXPECT_EQ(r["branches"][1]["gathered_rows"], Json::array({4 * (tokens / dilation)}));
    // Keys and values, B 2, D 8, 4 bytes, two layers, to all other ranks; rank 1 holds no row of
    // the second kind: rows lie on every fourth rank from 0 on.
    const int64_t rows = dilation == 4 ? 4 * (local / 4) : 0;
    EXPECT_EQ(r["bytes_per_step"]["forward"], 2 * 2 * rows * 8 * 4 * 2 * (ranks - 1));
  }
}

TEST(Plan, RowsAndMicroBatchesCostNoTime) {
  Program program;
  program.write_tiny_config();
  const auto flops = [&](int64_t batch, int64_t micro) {
    const Json r = plan(program, fmt::format("--ranks 2 train.recompute=layer train.batch_size={} "
                                             "train.accumulation={}",
                                             batch, micro));
    return std::array{r["flops_per_step"]["matmul"].get<double>(),
                      r["flops_per_step"]["recomputed"].get<double>(),
                      r["bytes_per_step"]["backward"].get<double>()};
  };
  const auto begin = std::chrono::steady_clock::now();
  // Both work on the feed-forward layer in parts, which recomputation counts in another way.
  const int64_t batch = 1 << 16, more = 16, micro = 1 << 20;
  const auto one = flops(batch, 1), many = flops(batch * more, micro);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(took.count(), 10) << "a walk over all pieces of the rows takes hours";
  for (size_t i = 0; i < one.size(); ++i)
    EXPECT_DOUBLE_EQ(many[i], one[i] * static_cast<double>(more * micro));
}

TEST(Plan, MoreThan63BitsOfBytesAreAnErrorAndNoNumber) {
  Program program;
  program.write_tiny_config();
  const Outcome outcome = program.run(
      "plan tiny.yaml --json train.batch_size=1048576 train.sequence_length=1099511627776");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(outcome.out, "");
  EXPECT_NE(outcome.err.find("more than 2^63 bytes"), std::string::npos) << outcome.err;
}

TEST(Plan, TinyModelOnTwoRanksByHand) {
  Program program;
  program.write_tiny_config();
  const Json r = plan(program, "--ranks 2 --rank 1");
  EXPECT_EQ(r["sequence_ranks"], 2);
  EXPECT_EQ(r["local_tokens"], 64);
  // Per layer: qkv 3 (32 32 + 32), out 32 32 + 32, fc1 32 64 + 64, fc2 64 32 + 32, four norms of
  // 2 (32 + 32 + 32 + 64); embedding and output 256 32 each; final norm 64.
  EXPECT_EQ(r["parameters"], 2 * (3 * 1056 + 1056 + 2112 + 2080 + 320) + 2 * 8192 + 64);
  EXPECT_EQ(r["branches"][0]["local_segments"], 4);  // 64 / 16
  EXPECT_EQ(r["branches"][0]["gathered_ranks"], Json::array());
  EXPECT_EQ(r["branches"][1]["local_segments"], 0);
  EXPECT_EQ(r["branches"][1]["gathered_ranks"], Json::array({2}));
  EXPECT_EQ(r["branches"][1]["gathered_rows"], Json::array({128}));  // 128 / 4 rows, 4 heads
  // A rank's chunk: keys and values, B 2, 64 rows, D 8, 4 bytes, to the other rank, two layers.
  EXPECT_EQ(r["bytes_per_step"]["forward"], 2 * 2 * 64 * 8 * 4 * 2);
  EXPECT_EQ(r["bytes_per_step"]["forward_needed"], 0);  // nobody comes after the last rank
  EXPECT_EQ(r["bytes_per_step"]["backward"], 2 * 2 * 64 * 8 * 4 * 2);
  // Half of the flat buffer there, the other half's sum back.
  EXPECT_EQ(r["bytes_per_step"]["gradients"], r["memory_bytes"]["gradients"]);
  EXPECT_EQ(r["memory_bytes"]["optimizer"], 2 * r["memory_bytes"]["parameters"].get<int64_t>());
  EXPECT_GE(r["memory_bytes"]["parameters"], 4 * r["parameters"].get<int64_t>());
  int64_t total = 0;
  for (const auto& [purpose, bytes] : r["memory_bytes"].items())
    if (purpose != "total") total += bytes.get<int64_t>();
  EXPECT_EQ(r["memory_bytes"]["total"], total);
  // Matrices per token: 2 (4 C C + 2 C F) a layer + 2 C V, three times with the backward.
  EXPECT_EQ(r["flops_per_step"]["matmul"],
            3.0 * 128 * (2 * 2 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 32 * 256));
  // Pairs: 4 segments of 16 17 / 2; rows 16 .. 31 see 17 + ... + 32 = 392; H 4, B 2, two layers; a
  // pair costs 4 D forward and 8 D backward.
  EXPECT_EQ(r["flops_per_step"]["attention"], (4 * 136 + 392) * 4 * 2 * 2 * 12.0 * 8);
}

TEST(PlanCommand, RecomputationSavesMemoryAndCountsApart) {
  Program program;
  program.write_tiny_config();
  const Json kept = plan(program, "--ranks 2"),
             again = plan(program, "train.recompute=layer --ranks 2");
  EXPECT_EQ(again["flops_per_step"]["matmul"], kept["flops_per_step"]["matmul"]);
  EXPECT_EQ(again["flops_per_step"]["attention"], kept["flops_per_step"]["attention"]);
  EXPECT_EQ(again["flops_per_token"], kept["flops_per_token"]);
  EXPECT_EQ(again["bytes_per_step"], kept["bytes_per_step"]);
  EXPECT_EQ(kept["flops_per_step"]["recomputed"], 0.0);
  // One of the two layers (the last one's activations are still there): matrices but fc2, and 4 of
  // the 12 D per pair of attention.
  EXPECT_EQ(again["flops_per_step"]["recomputed"],
            128.0 * 2 * (4 * 32 * 32 + 32 * 64) + (4 * 136 + 392) * 4 * 2 * 4.0 * 8);
  EXPECT_LT(again["memory_bytes"]["activations"], kept["memory_bytes"]["activations"]);
  EXPECT_EQ(again["memory_bytes"]["workspace"], kept["memory_bytes"]["workspace"]);
}

/// Three steps of training on `ranks` count what the plans of all ranks say.
void expect_bytes_as_counted(const std::string& settings, int ranks) {
  Program program;
  program.write_tiny_config();
  const Outcome outcome = program.run("train tiny.yaml " + settings, ranks);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  int64_t exchanged = 0, needed = 0, gradients = 0, parameters = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    const Json bytes = plan(program, settings + " --ranks " + std::to_string(ranks) + " --rank " +
                                         std::to_string(rank))["bytes_per_step"];
    exchanged += bytes["forward"].get<int64_t>() + bytes["backward"].get<int64_t>();
    needed += bytes["forward_needed"].get<int64_t>();
    gradients += bytes["gradients"].get<int64_t>();
    parameters += bytes["parameters"].get<int64_t>();
  }
  const Json step = last_step(program);
  EXPECT_GT(exchanged, 0);
  EXPECT_GT(needed, 0);
  EXPECT_EQ(step["exchanged_bytes"], exchanged);
  EXPECT_EQ(step["needed_bytes"], needed);
  EXPECT_EQ(step["gradient_bytes"], gradients);
  EXPECT_EQ(step["parameter_bytes"], parameters);
}

TEST(Plan, BytesAreWhatTwoRanksSend) { expect_bytes_as_counted("", 2); }

TEST(Plan, BytesAreWhatThreeUnevenRanksSend) {
  expect_bytes_as_counted(
      "train.sequence_length=100 model.branches=[[24,1],[48,3]] "
      "train.accumulation=2",
      3);
}

TEST(Plan, BytesAreWhatShardedRanksSend) {
  expect_bytes_as_counted("parallel.shard_optimizer=true", 4);
}

TEST(Plan, ShardedOptimizerHoldsItsShareAndSendsTheSameBytes) {
  Program program;
  program.write_tiny_config();
  const Json whole = plan(program, "--ranks 4 --rank 1");
  const Json sharded = plan(program, "parallel.shard_optimizer=true --ranks 4 --rank 1");
  const int64_t flat = whole["memory_bytes"]["parameters"];
  ASSERT_EQ(flat % (4 * 256), 0) << "four equal shares";
  EXPECT_EQ(whole["memory_bytes"]["optimizer"], 2 * flat);
  EXPECT_EQ(sharded["memory_bytes"]["optimizer"], 2 * flat / 4);
  EXPECT_EQ(sharded["memory_bytes"]["parameters"], flat);
  EXPECT_EQ(whole["bytes_per_step"]["parameters"], 0);
  EXPECT_EQ(sharded["bytes_per_step"]["gradients"], flat * 3 / 4);
  EXPECT_EQ(sharded["bytes_per_step"]["parameters"], flat * 3 / 4);
  EXPECT_EQ(whole["bytes_per_step"]["gradients"], 2 * flat * 3 / 4);
  const Outcome table = program.run("plan tiny.yaml parallel.shard_optimizer=true --ranks 4");
  EXPECT_NE(table.out.find("updated parameters"), std::string::npos) << table.out;
}

/// Four steps in one mode, and two in one mode followed by two in the other, end in the same file.
TEST(Train, ResumesAcrossModesAndRankCounts) {
  Program program;
  program.write_tiny_config();
  const std::string constant = "train tiny.yaml optimizer.schedule=constant ";
  const auto train = [&](const std::string& words, int ranks) {
    const Outcome outcome = program.run(constant + words, ranks);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  };
  train("run.folder=a train.steps=4", 2);
  for (const bool first : {false, true}) {
    const std::string folder = first ? "b" : "c";
    const auto mode = [&](bool sharded) {
      return "run.folder=" + folder +
             (sharded ? " parallel.shard_optimizer=true" : " parallel.shard_optimizer=false");
    };
    train(mode(first) + " train.steps=2", 2);
    train(mode(!first) + " train.steps=4", 2);
    for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
      const FileTensors a = read_tensors(program.file("a/step-00000004/" + std::string(file)));
      const FileTensors b = read_tensors(program.file(folder + "/step-00000004/" + file));
      ASSERT_EQ(a.size(), b.size());
      for (const auto& [name, tensor] : a) EXPECT_EQ(tensor.bytes, b.at(name).bytes) << name;
    }
    train(mode(true) + " train.steps=5", 4);
    train(mode(true) + " train.steps=6", 1);
    EXPECT_FALSE(read_whole_file(program.file(folder + "/step-00000006/state.json")).empty());
  }
}

TEST(Plan, ColumnsAndDefaults) {
  Program program;
  program.write_tiny_config();
  const Json several = plan(program, "--ranks 1,2,4");
  ASSERT_EQ(several.size(), 3u);
  EXPECT_EQ(several[2]["ranks"], 4);
  EXPECT_EQ(several[2]["rank"], 2) << "the middle one";
  EXPECT_EQ(several[0]["bytes_per_step"]["gradients"], 0);
  EXPECT_EQ(plan(program, "")["ranks"], 1);
  EXPECT_EQ(plan(program, "parallel.sequence_ranks=2 parallel.data_ranks=3")["ranks"], 6);
  EXPECT_EQ(plan(program, "--ranks 1000")["local_tokens"], 1) << "the middle of those with tokens";
  const Outcome table = program.run("plan tiny.yaml --ranks 1,2");
  EXPECT_EQ(table.exit_code, 0);
  EXPECT_NE(table.out.find("128:4"), std::string::npos) << table.out;
  EXPECT_NE(table.out.find("1 over 2 ranks"), std::string::npos) << table.out;
}

/// The job that one 80 GB GPU is to hold. A build without CUDA leaves out what GPU kernels need
/// beyond the CPU's: 1.1 GB (logits, packed operands of attention, cuBLASLt).
TEST(Plan, AMillionTokensOnOneGpu) {
  Program program;
  const Outcome outcome =
      program.run("plan '" + test::source_folder() + "/configs/longnet_1m.yaml' --ranks 1 --json");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const Json r = Json::parse(outcome.out);
  EXPECT_EQ(r["local_tokens"], 1048576);
  const Json& memory = r["memory_bytes"];
  EXPECT_LT(memory["total"].get<int64_t>() + 1'100'000'000, 78'000'000'000);
  // No less than the inputs of 12 blocks and 18 bytes per parameter (f32 and bf16 weights,
  // gradients, two moments).
  EXPECT_GE(memory["activations"].get<int64_t>(), int64_t{12} * 1048576 * 768 * 4);
  EXPECT_GE(memory["parameters"].get<int64_t>() + memory["gradients"].get<int64_t>() +
                memory["optimizer"].get<int64_t>(),
            18 * r["parameters"].get<int64_t>());
}

TEST(Plan, ABillionTokensOn512Ranks) {
  Program program;
  const Outcome outcome = program.run(
      "plan '" + source_folder() +
      "/configs/longnet_125m.yaml' train.sequence_length=1000000000 model.position=rope "
      "'model.branches=[[2048,1],[65536,32],[2097152,1024],[67108864,32768],[1000000000,524288]]' "
      "--ranks 512 --json");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const Json r = Json::parse(outcome.out);
  EXPECT_EQ(r["local_tokens"], 1953125);
  EXPECT_EQ(r["branches"][4]["gathered_ranks"], Json::array({512}));
  EXPECT_GT(r["bytes_per_step"]["forward"], 0);
}

}  // namespace
}  // namespace longnet::test
