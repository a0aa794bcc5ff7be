// `longnet attend`: the golden numbers on one and two ranks, the accepted types, visible ranges.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "cli/program.h"
#include "support/compare.h"
#include "support/golden.h"

namespace longnet::test {
namespace {

std::string branch_options(const nlohmann::json& branches) {
  std::string text;
  for (const auto& b : branches)
    text += " --branch " + std::to_string(b[0].get<int64_t>()) + ":" +
            std::to_string(b[1].get<int64_t>());
  return text;
}

class AttendGolden : public testing::TestWithParam<std::string> {};

TEST_P(AttendGolden, OneRankAndTwoRanks) {
  const GoldenFile golden(GetParam());
  const nlohmann::json& c = golden.description;
  double largest = 0;
  for (const char* name : {"grad_q", "grad_k", "grad_v"})
    for (float g : golden.floats(name)) largest = std::max(largest, std::abs(double(g)));
  for (int ranks : {1, 2}) {
    Program program;
    const Outcome outcome = program.run(
        "attend '" + test::source_folder() + "/tests/golden/" + GetParam() + "' out.safetensors" +
            branch_options(c["branches"]) + (c["causal"].get<bool>() ? " --causal" : "") +
            " --head-offset " + c["head_offset"].get<std::string>(),
        ranks);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    const FileTensors tensors = read_tensors(program.file("out.safetensors"));
    ASSERT_EQ(tensors.size(), 5u);
    for (const auto& [name, tensor] : tensors) {
      EXPECT_EQ(tensor.shape, golden.at(name).shape) << name;
      const double gradient = name.rfind("grad_", 0) == 0 ? largest : 0;
      EXPECT_LE(error_ratio(difference(tensor.floats(), golden.floats(name)), gradient), 1.0)
          << name << " on " << ranks << " ranks";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cli, AttendGolden, testing::ValuesIn(golden_names("attention-")),
                         [](const auto& info) {
                           std::string name = info.param.substr(0, info.param.find('.'));
                           for (char& c : name)
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           return name;
                         });

constexpr int64_t kTokens = 37, kHeads = 2, kHeadDim = 8;
const std::vector<int64_t> kShape{1, kTokens, kHeads, kHeadDim};

/// q, k, v whose values bfloat16 holds exactly.
std::map<std::string, std::vector<float>> inputs() {
  std::map<std::string, std::vector<float>> values;
  uint64_t seed = 1;
  for (const char* name : {"q", "k", "v"}) {
    values[name] = random_values(kTokens * kHeads * kHeadDim, seed++);
    for (float& x : values[name]) x = std::round(x * 16) / 16;
  }
  return values;
}

FileTensors f32_tensors() {
  FileTensors tensors;
  for (const auto& [name, values] : inputs()) tensors[name] = file_tensor("F32", kShape, values);
  return tensors;
}

FileTensors attend(const Program& program, const FileTensors& tensors, const std::string& options,
                   int ranks = 1) {
  write_tensors(program.folder(), "in.safetensors", tensors);
  const Outcome outcome = program.run("attend in.safetensors out.safetensors " + options, ranks);
  if (outcome.exit_code != 0) throw std::runtime_error(outcome.err);
  return read_tensors(program.file("out.safetensors"));
}

TEST(Attend, DoubleAndBfloat16AreConverted) {
  Program program;
  const std::string options = "--branch 16:1 --branch 37:2 --causal";
  const FileTensors expected = attend(program, f32_tensors(), options);
  EXPECT_EQ(expected.count("grad_q"), 0u) << "no grad_o, no gradients";
  FileTensors doubles, halves;
  for (const auto& [name, values] : inputs()) {
    doubles[name] = file_tensor("F64", kShape, std::vector<double>(values.begin(), values.end()));
    std::vector<uint16_t> upper;
    for (float v : values) {
      uint32_t word;
      std::memcpy(&word, &v, 4);
      ASSERT_EQ(word & 0xffff, 0u);
      upper.push_back(static_cast<uint16_t>(word >> 16));
    }
    halves[name] = file_tensor("BF16", kShape, upper);
  }
  for (const FileTensors& tensors : {doubles, halves})
    EXPECT_EQ(attend(program, tensors, options).at("o").bytes, expected.at("o").bytes);
}

TEST(Attend, VisibleRangesOnThreeRanks) {
  // One dense branch, so plain masked attention in double is the definition.
  Program program;
  FileTensors tensors = f32_tensors();
  std::vector<int64_t> first(kTokens), last(kTokens);
  for (int64_t t = 0; t < kTokens; ++t) {
    first[t] = t < 20 ? 0 : 20;  // two documents
    last[t] = t < 20 ? 15 : kTokens - 1;
  }
  tensors["first_visible"] = file_tensor("I64", {1, kTokens}, first);
  tensors["last_visible"] = file_tensor("I64", {1, kTokens}, last);
  const auto values = inputs();
  const auto at = [&](const char* name, int64_t t, int64_t h, int64_t d) {
    return double(values.at(name)[(t * kHeads + h) * kHeadDim + d]);
  };
  std::vector<float> expected(kTokens * kHeads * kHeadDim);
  for (int64_t t = 0; t < kTokens; ++t)
    for (int64_t h = 0; h < kHeads; ++h) {
      double sum = 0;
      std::vector<double> out(kHeadDim, 0.0);
      for (int64_t u = first[t]; u <= std::min(t, last[t]); ++u) {
        double dot = 0;
        for (int64_t d = 0; d < kHeadDim; ++d) dot += at("q", t, h, d) * at("k", u, h, d);
        const double weight = std::exp(0.5 * dot);
        sum += weight;
        for (int64_t d = 0; d < kHeadDim; ++d) out[d] += weight * at("v", u, h, d);
      }
      for (int64_t d = 0; d < kHeadDim; ++d)
        expected[(t * kHeads + h) * kHeadDim + d] = static_cast<float>(out[d] / sum);
    }
  for (int ranks : {1, 3}) {
    const FileTensors results =
        attend(program, tensors, "--branch 64:1 --causal --scale 0.5", ranks);
    EXPECT_LE(error_ratio(difference(results.at("o").floats(), expected)), 1.0)
        << ranks << " ranks";
  }
}

TEST(Attend, PositionsOnTwoRanks) {
  Program program;
  const std::string plain = attend(program, f32_tensors(), "--branch 37:2 --causal").at("o").bytes;
  for (const std::string position : {"rope", "xpos"}) {
    const std::string options = "--branch 37:2 --causal --position " + position;
    const std::vector<float> one = attend(program, f32_tensors(), options).at("o").floats();
    const std::vector<float> two = attend(program, f32_tensors(), options, 2).at("o").floats();
    EXPECT_LE(error_ratio(difference(two, one)), 1.0) << position;
    EXPECT_NE(attend(program, f32_tensors(), options).at("o").bytes, plain) << position;
    EXPECT_NE(attend(program, f32_tensors(), options + " --rope-base 100").at("o").floats(), one);
  }
}

TEST(Attend, MemoryIsEstimatedBeforeItIsTaken) {
  // A sparse file of 1.6 TB: q, k, v of [1, 2^27, 8, 128].
  Program program;
  const int64_t bytes = int64_t{1} << 39;
  std::string header = "{";
  for (int i = 0; i < 3; ++i)
    header += fmt::format(
        R"({}"{}":{{"dtype":"F32","shape":[1,134217728,8,128],"data_offsets":[{},{}]}})",
        i ? "," : "", "qkv"[i], i * bytes, (i + 1) * bytes);
  header += "}";
  uint64_t length = header.size();
  std::string start(reinterpret_cast<const char*>(&length), 8);
  const std::string path = program.file("in.safetensors");
  std::ofstream(path, std::ios::binary) << start + header;
  std::filesystem::resize_file(path, static_cast<uintmax_t>(8 + length) + 3 * bytes);
  const Outcome outcome = program.run("attend in.safetensors out.safetensors --branch 64:1");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_NE(outcome.err.find("in.safetensors: [1, 134217728, 8, 128] takes at least 3584.0 GiB"),
            std::string::npos)
      << outcome.err;
  EXPECT_FALSE(std::filesystem::exists(program.file("out.safetensors")));
}

}  // namespace
}  // namespace longnet::test
