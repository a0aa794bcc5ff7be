// Checkpoints: bit-exact round trips, what is kept, leftovers of killed writes, and every refusal.
#include "train/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <zlib.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "core/safetensors.h"
#include "support/compare.h"
#include "support/temporary_folder.h"

namespace longnet::test {
namespace {

namespace fs = std::filesystem;

Config tiny_config() {
  Config config;
  config.model.vocab_size = 11;
  config.model.dim = 16;
  config.model.layers = 1;
  config.model.heads = 2;
  config.model.ffn_dim = 8;
  config.model.branches = {{8, 1}, {16, 2}};
  config.train.sequence_length = 16;
  return config;
}

struct Saved {
  Config config = tiny_config();
  ParameterLayout layout{config.model};
  std::vector<float> parameters = values(1), first = values(2), second = values(3);
  TrainingState state{.step = 7,
                      .tokens_seen = 1234,
                      .data = {2, 5},
                      .seed = -1,
                      .loss = 2.25,
                      .training_data = {3, 70000, "0123456789abcdef"},
                      .lineage = {{"step-00000003", 3, 4000000000}}};
  TemporaryFolder folder;

  std::vector<float> values(uint64_t seed) const {
    std::vector<float> v(layout.elements(), 0.0f);
    const std::vector<float> noise = random_values(layout.elements(), seed);
    for (const ParameterInfo& info : layout.parameters())
      std::copy_n(noise.begin() + info.offset, info.elements, v.begin() + info.offset);
    return v;
  }
  static TensorView view(std::vector<float>& v) {
    return TensorView(v.data(), DType::kF32, {static_cast<int64_t>(v.size())});
  }
  TrainingTensors tensors() { return {view(parameters), view(first), view(second)}; }
  std::string save(int64_t keep_last = 0) {
    return save_checkpoint(folder.path(), config, layout, tensors(), state, keep_last);
  }
};

/// Calls `work`, which must throw; the message.
std::string message_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Checkpoint, RoundTripIsExact) {
  Saved saved;
  saved.parameters[3] = 1e-42f;  // a denormal number survives too
  const std::string path = saved.save();
  const Checkpoint checkpoint = open_checkpoint(path);
  saved.state.seed = saved.config.train.seed;
  EXPECT_EQ(checkpoint.state, saved.state);
  EXPECT_EQ(checkpoint.config, saved.config);
  std::vector<float> p(saved.layout.elements(), 0.0f), m = p, v = p;
  load_tensors(checkpoint, saved.layout, {Saved::view(p), Saved::view(m), Saved::view(v)});
  EXPECT_EQ(std::memcmp(p.data(), saved.parameters.data(), p.size() * 4), 0);
  EXPECT_EQ(m, saved.first);
  EXPECT_EQ(v, saved.second);
  // The tensors carry the reference's names and shapes.
  const SafetensorsFile file(path + "/model.safetensors");
  EXPECT_EQ(file.entry("layers.0.self_attn.k_proj.weight").shape, (std::vector<int64_t>{16, 16}));
  EXPECT_EQ(file.entries().size(), saved.layout.parameters().size());
}

TEST(Checkpoint, KeepsTheLastAndFindsTheLatest) {
  Saved saved;
  EXPECT_FALSE(latest_checkpoint(saved.folder.path()));
  for (int64_t step : {5, 10, 15, 100}) {
    saved.state.step = step;
    saved.save(2);
  }
  EXPECT_FALSE(fs::exists(saved.folder.file("step-00000005")));
  EXPECT_FALSE(fs::exists(saved.folder.file("step-00000010")));
  EXPECT_TRUE(fs::exists(saved.folder.file("step-00000015")));
  EXPECT_EQ(*latest_checkpoint(saved.folder.path()), saved.folder.file("step-00000100"));
}

TEST(Checkpoint, LeftoversOfKilledWritesAreIgnoredAndRemoved) {
  Saved saved;
  const std::string path = saved.save();
  fs::create_directories(saved.folder.file(".tmp-step-00000099"));
  fs::create_directories(saved.folder.file(".old-step-00000001"));
  fs::create_directories(saved.folder.file("step-abc"));
  EXPECT_EQ(*latest_checkpoint(saved.folder.path()), path);
  remove_leftovers(saved.folder.path());
  EXPECT_FALSE(fs::exists(saved.folder.file(".tmp-step-00000099")));
  EXPECT_FALSE(fs::exists(saved.folder.file(".old-step-00000001")));
  EXPECT_TRUE(fs::exists(saved.folder.file("step-abc")));
  // Killed between the two renames of a replacement, and after them.
  fs::rename(path, saved.folder.file(".replaced-step-00000007"));
  remove_leftovers(saved.folder.path());
  EXPECT_EQ(*latest_checkpoint(saved.folder.path()), saved.folder.file("step-00000007"));
  fs::rename(saved.folder.file("step-00000007"), path);
  fs::create_directories(saved.folder.file(".replaced-" + fs::path(path).filename().string()));
  remove_leftovers(saved.folder.path());
  EXPECT_EQ(*latest_checkpoint(saved.folder.path()), path);
  EXPECT_FALSE(fs::exists(saved.folder.file(".replaced-" + fs::path(path).filename().string())));
  // A step can be saved again (a run that went back reaches it once more).
  saved.parameters[0] = 42.0f;
  saved.save();
  EXPECT_EQ(
      SafetensorsFile(path + "/model.safetensors").floats(saved.layout.parameters()[0].name)[0],
      42.0f);
}

TEST(Checkpoint, AFolderThatCannotBeWritten) {
  Saved saved;
  saved.folder.write("file", "x");
  try {
    save_checkpoint(saved.folder.file("file/inside"), saved.config, saved.layout, saved.tensors(),
                    saved.state, 1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("run.folder"), std::string::npos) << error.what();
  }
}

void write(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

/// Rewrites state.json after `change`, its checksum too, so that only what it says is wrong.
void edit_state(const std::string& path, const std::function<void(nlohmann::json&)>& change) {
  auto json = nlohmann::json::parse(read_whole_file(path + "/state.json"));
  change(json);
  json.erase("crc32");
  const std::string text = json.dump();
  json["crc32"] = crc32(0, reinterpret_cast<const Bytef*>(text.data()), uInt(text.size()));
  write(path + "/state.json", json.dump());
}

struct Damage {
  const char* name;
  std::function<void(const std::string& path)> apply;
  const char* expected;
};

TEST(Checkpoint, DamagedOrForeignOnesAreRefusedWithTheReason) {
  const std::vector<Damage> damages{
      {"no state", [](const std::string& p) { fs::remove(p + "/state.json"); },
       "state.json: the file is missing"},
      {"state is no JSON", [](const std::string& p) { write(p + "/state.json", "{"); },
       "damaged or written by another program"},
      {"state of another program",
       [](const std::string& p) { write(p + "/state.json", "{\"a\":1}"); },
       "damaged or written by another program"},
      {"state is a list", [](const std::string& p) { write(p + "/state.json", "[1]"); },
       "damaged or written by another program"},
      {"step is a word",
       [](const std::string& p) { edit_state(p, [](auto& j) { j["step"] = "seven"; }); },
       "step is \"seven\", not a whole number"},
      {"step below 0", [](const std::string& p) { edit_state(p, [](auto& j) { j["step"] = -1; }); },
       "step is -1, not a whole number"},
      {"step with a fraction",
       [](const std::string& p) { edit_state(p, [](auto& j) { j["step"] = 40.7; }); },
       "step is 40.7, not a whole number"},
      {"epoch at the end of its type",
       [](const std::string& p) { edit_state(p, [](auto& j) { j["epoch"] = INT64_MAX; }); },
       "epoch is 9223372036854775807, not a whole number"},
      {"next sample below 0",
       [](const std::string& p) { edit_state(p, [](auto& j) { j["next_sample"] = -5; }); },
       "next_sample is -5, not a whole number"},
      {"tokens beyond their type",
       [](const std::string& p) { edit_state(p, [](auto& j) { j["tokens_seen"] = UINT64_MAX; }); },
       "tokens_seen is 18446744073709551615, not a whole number"},
      {"another seed than the configuration's",
       [](const std::string& p) { edit_state(p, [](auto& j) { j["seed"] = 99; }); },
       "seed is 99, config.yaml says 1"},
      {"loss is a word",
       [](const std::string& p) { edit_state(p, [](auto& j) { j["loss"] = "low"; }); },
       "loss is \"low\", not a finite number"},
      {"lineage is a number",
       [](const std::string& p) { edit_state(p, [](auto& j) { j["lineage"] = 3; }); },
       "lineage is 3, not a list"},
      {"an ancestor without step",
       [](const std::string& p) {
         edit_state(p, [](auto& j) { j["lineage"] = {{{"checkpoint", "step-1"}, {"id", 1}}}; });
       },
       "step is missing"},
      {"data's hash is a number",
       [](const std::string& p) { edit_state(p, [](auto& j) { j["training_data"]["hash"] = 1; }); },
       "hash is 1, not a text"},
      {"size of a file below 0",
       [](const std::string& p) {
         edit_state(p, [](auto& j) { j["files"]["config.yaml"]["bytes"] = -1; });
       },
       "bytes is -1, not a whole number"},
      {"the state of another step",
       [](const std::string& p) { edit_state(p, [](auto& j) { j["step"] = 8; }); },
       "the folder's name says step 7, its state.json step 8"},
      {"a pipe",
       [](const std::string& p) {
         fs::remove(p + "/model.safetensors");
         mkfifo((p + "/model.safetensors").c_str(), 0600);
       },
       "model.safetensors: is not a regular file"},
      {"a device behind a link",
       [](const std::string& p) {
         fs::remove(p + "/state.json");
         fs::create_symlink("/dev/zero", p + "/state.json");
       },
       "state.json: is not a regular file"},
      {"newer format",
       [](const std::string& p) { edit_state(p, [](auto& j) { j["format_version"] = 5; }); },
       "format version 5, this program reads 1 to 4"},
      {"no checksum",
       [](const std::string& p) {
         edit_state(p, [](auto& j) { j["files"].erase("config.yaml"); });
       },
       "no checksum of config.yaml"},
      {"no model", [](const std::string& p) { fs::remove(p + "/model.safetensors"); },
       "model.safetensors: the file is missing"},
      {"no optimizer", [](const std::string& p) { fs::remove(p + "/optimizer.safetensors"); },
       "optimizer.safetensors: the file is missing"},
      {"no config", [](const std::string& p) { fs::remove(p + "/config.yaml"); },
       "config.yaml: the file is missing"},
      {"truncated model",
       [](const std::string& p) {
         fs::resize_file(p + "/model.safetensors", fs::file_size(p + "/model.safetensors") - 1);
       },
       "it is truncated or changed"},
      {"empty optimizer",
       [](const std::string& p) { fs::resize_file(p + "/optimizer.safetensors", 0); }, "0 bytes"},
      {"one bit of the model",
       [](const std::string& p) {
         std::string bytes = read_whole_file(p + "/model.safetensors");
         bytes[bytes.size() - 5] = static_cast<char>(bytes[bytes.size() - 5] ^ 1);
         write(p + "/model.safetensors", bytes);
       },
       "it is damaged"},
      {"one letter of the config",
       [](const std::string& p) {
         std::string bytes = read_whole_file(p + "/config.yaml");
         bytes[bytes.find("dim: 16") + 6] = '8';
         write(p + "/config.yaml", bytes);
       },
       "config.yaml: its checksum"},
  };
  for (const Damage& damage : damages) {
    Saved saved;
    saved.state.step = 3;
    const std::string earlier = saved.save();
    saved.state.step = 7;
    const std::string path = saved.save();
    damage.apply(path);
    try {
      open_checkpoint(path);
      FAIL() << damage.name;
    } catch (const Error& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find(damage.expected), std::string::npos) << damage.name << ": " << text;
      EXPECT_NE(text.find("checkpoint.resume=" + earlier), std::string::npos)
          << damage.name << ": " << text;
      EXPECT_EQ(text.find('\n'), std::string::npos) << damage.name;
    }
    EXPECT_EQ(open_checkpoint(earlier).state.step, 3) << damage.name;
  }
}

TEST(Checkpoint, EveryChangedCharacterOfTheStateIsNoticed) {
  Saved saved;
  saved.state.tokens_seen = 123456;
  saved.state.data = {3, 41};
  const std::string path = saved.save(), file = path + "/state.json";
  const std::string good = read_whole_file(file);
  const auto content = [&](const std::string& text) {
    return nlohmann::json::parse(text, nullptr, false);
  };
  int changed = 0;
  for (size_t i = 0; i < good.size(); ++i)
    for (int mask : {1, 2, 4, 8, 16, 32, 64}) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ mask);
      if (content(bad) == content(good)) continue;  // white space
      write(file, bad);
      ++changed;
      EXPECT_NE(message_of([&] { open_checkpoint(path); }).find("checkpoint refused"),
                std::string::npos)
          << bad;
    }
  EXPECT_GT(changed, 1000);
  write(file, good);
  EXPECT_EQ(open_checkpoint(path).state.data.next_sample, 41);
}

/// Flips one bit of, cuts or lengthens one file after another. LN_TEST_LONG: many more times.
TEST(Checkpoint, DamageOfAnyFileIsRefusedOrHarmless) {
  Saved saved;
  const std::string path = saved.save();
  const int64_t rounds = std::getenv("LN_TEST_LONG") != nullptr ? 2000 : 25;
  std::mt19937_64 random(7);
  int64_t refused = 0, harmless = 0;
  for (const char* name :
       {"model.safetensors", "optimizer.safetensors", "config.yaml", "state.json"}) {
    const std::string file = path + "/" + name, good = read_whole_file(file);
    for (int64_t round = 0; round < rounds; ++round) {
      std::string bad = good;
      const size_t place = random() % good.size();
      if (round % 3 == 0) bad.resize(place);
      if (round % 3 == 1) bad[place] = static_cast<char>(bad[place] ^ (1 << random() % 8));
      if (round % 3 == 2) bad.insert(place, 1 + random() % 9, static_cast<char>(random()));
      write(file, bad);
      std::vector<float> p(saved.layout.elements(), 0.0f), m = p, v = p;
      const std::string text = message_of([&] {
        const Checkpoint checkpoint = open_checkpoint(path);
        EXPECT_EQ(checkpoint.config, saved.config);
        EXPECT_EQ(checkpoint.state.step, saved.state.step);
        EXPECT_EQ(checkpoint.state.lineage, saved.state.lineage);
        load_tensors(checkpoint, saved.layout, {Saved::view(p), Saved::view(m), Saved::view(v)});
      });
      if (text == "no error") {
        ++harmless;
        EXPECT_EQ(p, saved.parameters);
        EXPECT_EQ(v, saved.second);
      } else {
        ++refused;
        EXPECT_NE(text.find("checkpoint refused: " + path), std::string::npos) << text;
        EXPECT_EQ(text.find('\n'), std::string::npos) << text;
      }
    }
    write(file, good);
  }
  std::printf("%lld refused, %lld harmless\n", static_cast<long long>(refused),
              static_cast<long long>(harmless));
  EXPECT_EQ(refused + harmless, 4 * rounds);
  EXPECT_GT(refused, 3 * rounds);
}

TEST(Checkpoint, AStateWithoutChecksumOfTheFirstFormatIsRead) {
  Saved saved;
  const std::string path = saved.save();
  auto json = nlohmann::json::parse(read_whole_file(path + "/state.json"));
  json.erase("crc32");
  write(path + "/state.json", json.dump());
  EXPECT_NE(message_of([&] { open_checkpoint(path); }).find("damaged"), std::string::npos);
  json["format_version"] = 1;
  write(path + "/state.json", json.dump());
  EXPECT_EQ(open_checkpoint(path).state.step, saved.state.step);
}

TEST(Checkpoint, AStateOfTheThirdFormatIsRead) {
  Saved saved;
  saved.state.loss = 2.0;
  const std::string path = saved.save();
  edit_state(path, [](auto& j) {
    for (const char* field : {"spike", "rollbacks", "recent_losses"}) j.erase(field);
    j["format_version"] = 3;
  });
  const TrainingState state = open_checkpoint(path).state;
  EXPECT_EQ(state.loss, 2.0);
  EXPECT_FALSE(state.spike);
  EXPECT_EQ(state.rollbacks, 0);
  EXPECT_TRUE(state.recent_losses.empty());
}

TEST(Checkpoint, AStateOfTheSecondFormatIsRead) {
  Saved saved;
  const std::string path = saved.save();
  edit_state(path, [](auto& j) {
    for (const char* field :
         {"seed", "loss", "lineage", "training_data", "spike", "rollbacks", "recent_losses"})
      j.erase(field);
    j["format_version"] = 2;
  });
  const TrainingState state = open_checkpoint(path).state;
  EXPECT_EQ(state.step, 7);
  EXPECT_EQ(state.data, saved.state.data);
  EXPECT_EQ(state.seed, -1);
  EXPECT_FALSE(state.loss);
  EXPECT_TRUE(state.lineage.empty());
  EXPECT_TRUE(state.training_data.hash.empty());
}

TEST(Checkpoint, TheWayOutIsWholeFiniteAndSensible) {
  Saved saved;
  std::vector<std::string> paths;
  for (int64_t step : {1, 2, 3, 4, 5}) {
    saved.state.step = step;
    saved.state.loss = step == 4 ? 7335.0 : 2.0;
    paths.push_back(saved.save());
  }
  EXPECT_EQ(*last_good_checkpoint(saved.folder.path(), 5), paths[2]) << "step 4 has a loss of 7335";
  std::string bytes = read_whole_file(paths[2] + "/optimizer.safetensors");
  bytes[bytes.size() - 3] = static_cast<char>(bytes[bytes.size() - 3] ^ 4);
  write(paths[2] + "/optimizer.safetensors", bytes);
  fs::remove(paths[4] + "/config.yaml");
  EXPECT_NE(message_of([&] { open_checkpoint(paths[4]); }).find("checkpoint.resume=" + paths[1]),
            std::string::npos);
  for (int i : {0, 1}) fs::remove(paths[i] + "/model.safetensors");
  const std::string text = message_of([&] { open_checkpoint(paths[4]); });
  EXPECT_NE(text.find("no earlier good one"), std::string::npos) << text;
  EXPECT_EQ(text.find("checkpoint.resume=/"), std::string::npos) << text;
}

TEST(Checkpoint, NonFiniteValuesAreNotSaved) {
  Saved saved;
  saved.state.step = 3;
  const std::string earlier = saved.save(1);
  saved.state.step = 7;
  for (std::vector<float>* values : {&saved.parameters, &saved.first, &saved.second}) {
    const float before = (*values)[2];
    (*values)[2] = NAN;
    const std::string text = message_of([&] { saved.save(1); });
    EXPECT_NE(text.find("holds nan at place 2"), std::string::npos) << text;
    EXPECT_FALSE(fs::exists(saved.folder.file(".tmp-step-00000007")));
    (*values)[2] = before;
  }
  EXPECT_EQ(*latest_checkpoint(saved.folder.path()), earlier);
}

TEST(Checkpoint, BadOnesTakeNoPlaceOfGoodOnes) {
  Saved saved;
  for (int64_t step : {1, 2, 3, 4, 5, 6}) {
    saved.state.step = step;
    saved.state.loss = step > 3 ? 500.0 : 2.0;
    saved.save(2);
  }
  for (int64_t step : {2, 3, 5, 6}) EXPECT_TRUE(fs::exists(saved.folder.file(step_name(step))));
  for (int64_t step : {1, 4}) EXPECT_FALSE(fs::exists(saved.folder.file(step_name(step))));
}

TEST(Checkpoint, PathsThatAreNoCheckpoint) {
  Saved saved;
  const std::string path = saved.save();
  EXPECT_NE(message_of([&] {
              open_checkpoint(saved.folder.file("step-00000099"));
            }).find("no such checkpoint"),
            std::string::npos);
  const std::string text = message_of([&] { open_checkpoint(saved.folder.path()); });
  EXPECT_NE(text.find("its latest one is " + path), std::string::npos) << text;
  EXPECT_EQ(open_checkpoint(path + "/").state.step, 7);
}

TEST(Checkpoint, AnotherModelNamesTheFirstDifference) {
  Saved saved;
  const Checkpoint checkpoint = open_checkpoint(saved.save());
  check_same_model(checkpoint, saved.config.model);
  ModelConfig other = saved.config.model;
  other.qk_norm = true;
  const std::string text = message_of([&] { check_same_model(checkpoint, other); });
  EXPECT_NE(text.find("qk_norm: false"), std::string::npos) << text;
  EXPECT_NE(text.find("qk_norm: true"), std::string::npos) << text;
  other = saved.config.model;
  other.branches = {{8, 1}};
  EXPECT_NE(message_of([&] { check_same_model(checkpoint, other); }).find("branches"),
            std::string::npos);
}

TEST(Checkpoint, TensorsThatDoNotFit) {
  Saved saved;
  const std::string path = saved.save();
  const auto rewritten = [&](const std::function<void(std::vector<SafetensorsTensor>&)>& change) {
    std::vector<SafetensorsTensor> tensors;
    for (const ParameterInfo& info : saved.layout.parameters())
      tensors.push_back(
          {info.name, DType::kF32, info.shape, saved.parameters.data() + info.offset});
    change(tensors);
    write_safetensors(path + "/model.safetensors", tensors);
    Checkpoint checkpoint;
    checkpoint.path = path;
    std::vector<float> p(saved.layout.elements());
    return message_of([&] { load_tensors(checkpoint, saved.layout, {Saved::view(p), {}, {}}); });
  };
  EXPECT_NE(rewritten([](auto& t) { t.pop_back(); }).find("is missing"), std::string::npos);
  EXPECT_NE(rewritten([](auto& t) {
              t.push_back({"extra", DType::kF32, {1}, t[0].data});
            }).find("tensor extra is not the model's"),
            std::string::npos);
  EXPECT_NE(rewritten([](auto& t) { std::swap(t[0].shape[0], t[0].shape[1]); }).find("has shape"),
            std::string::npos);
  saved.parameters[1] = INFINITY;
  EXPECT_NE(rewritten([](auto&) {}).find("non-finite value at place 1"), std::string::npos);
}

}  // namespace
}  // namespace longnet::test
