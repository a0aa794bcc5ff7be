// Safetensors: round trip, every element type, files of the Python writer, damaged files,
// mutations.
#include "core/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>

#include "core/error.h"
#include "support/source_folder.h"
#include "support/temporary_folder.h"

namespace longnet {
namespace {

using test::TemporaryFolder;

template <typename Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

std::string little_endian(uint64_t value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

/// A file with this header and this many bytes of data (0, 1, 2, ...).
std::string file_bytes(const std::string& header, size_t data_bytes) {
  std::string bytes = little_endian(header.size()) + header;
  for (size_t i = 0; i < data_bytes; ++i) bytes += static_cast<char>(i);
  return bytes;
}

TEST(Safetensors, RoundTrip) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  const std::vector<float> weights{1.5f, -0.0f, INFINITY, 1e-40f, 3.14159274f, -7.0f};
  const std::vector<int64_t> counts{0, -1, std::numeric_limits<int64_t>::max(),
                                    std::numeric_limits<int64_t>::min()};
  const std::vector<uint16_t> halves{0x3F80, 0xC000, 0x0000};  // 1, -2, 0
  const float scalar = 42;
  write_safetensors(path,
                    {{"w/é \"x\"", DType::kF32, {2, 3}, weights.data()},
                     {"h", DType::kBF16, {3}, halves.data()},  // moves the next off its alignment
                     {"n", DType::kI64, {1, 2, 1, 2, 1}, counts.data()},
                     {"empty", DType::kF32, {0, 5}, nullptr},
                     {"a scalar", DType::kF32, {}, &scalar}},
                    {{"step", "12"}, {"config", "model:\n  dim: 4\n"}});
  const SafetensorsFile file(path);
  EXPECT_EQ(file.path(), path);
  EXPECT_EQ(file.entries().size(), 5u);
  EXPECT_EQ(file.metadata(),
            (std::map<std::string, std::string>{{"step", "12"}, {"config", "model:\n  dim: 4\n"}}));
  EXPECT_EQ(file.entry("w/é \"x\"").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(file.entry("w/é \"x\"").dtype, "F32");
  EXPECT_EQ(file.entry("n").shape, (std::vector<int64_t>{1, 2, 1, 2, 1}));
  std::vector<float> raw(3);
  file.read("w/é \"x\"", 8, raw.data(), 12);
  EXPECT_EQ(raw, std::vector<float>(weights.begin() + 2, weights.begin() + 5));
  EXPECT_EQ(file.floats("w/é \"x\""), weights);
  EXPECT_EQ(file.floats("h"), (std::vector<float>{1, -2, 0}));
  EXPECT_EQ(file.integers("n"), counts);
  EXPECT_TRUE(file.floats("empty").empty());
  EXPECT_EQ(file.floats("a scalar"), std::vector<float>{42});
  EXPECT_EQ(file.entry("a scalar").elements(), 1);
  EXPECT_TRUE(file.contains("h"));
  EXPECT_FALSE(file.contains("H"));
  EXPECT_EQ(message_of([&] { file.floats("a scaler"); }),
            path + ": has no tensor \"a scaler\"; nearest: \"a scalar\"");
  EXPECT_EQ(message_of([&] { file.floats("n"); }),
            path + ": tensor \"n\" is I64; wanted F32, F64, BF16 or F16");
  EXPECT_EQ(message_of([&] { file.integers("h"); }),
            path + ": tensor \"h\" is BF16; wanted I64, I32, U16 or U8");
}

TEST(Safetensors, WritesTheLayoutOfTheFormat) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  const int64_t value = 0x0102030405060708;
  write_safetensors(path, {{"n", DType::kI64, {1}, &value}});
  std::string header = R"({"n":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  EXPECT_EQ(test::read_whole_file(path),
            little_endian(header.size()) + header + "\x08\x07\x06\x05\x04\x03\x02\x01");
  write_safetensors(path, {});
  EXPECT_EQ(test::read_whole_file(path), little_endian(8) + "{}      ");
  EXPECT_TRUE(SafetensorsFile(path).entries().empty());
}

TEST(Safetensors, ReadsEveryType) {
  const TemporaryFolder folder;
  const double f64[] = {0.1, -2};
  const uint16_t f16[] = {0x3C00, 0xC000, 0x7BFF, 0x0001, 0x03FF, 0x0400, 0x8000, 0x7C00, 0xFC00};
  const int32_t i32[] = {-5, 2147483647};
  const uint16_t u16[] = {65535, 0};
  const uint8_t u8[] = {255};
  std::string data;
  const auto add = [&](const void* p, size_t n) { data.append(static_cast<const char*>(p), n); };
  add(u8, 1);  // everything after it is unaligned
  add(f64, 16);
  add(f16, 18);
  add(i32, 8);
  add(u16, 4);
  const std::string header = R"({"u8":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("f64":{"dtype":"F64","shape":[2],"data_offsets":[1,17]},)"
                             R"("f16":{"dtype":"F16","shape":[9],"data_offsets":[17,35]},)"
                             R"("i32":{"dtype":"I32","shape":[2],"data_offsets":[35,43]},)"
                             R"("u16":{"dtype":"U16","shape":[2],"data_offsets":[43,47]}} )";
  const SafetensorsFile file(
      folder.write("a.safetensors", little_endian(header.size()) + header + data));
  EXPECT_EQ(file.floats("f64"), (std::vector<float>{0.1f, -2}));
  EXPECT_EQ(file.floats("f16"), (std::vector<float>{1, -2, 65504, 0x1p-24f, 1023 * 0x1p-24f,
                                                    0x1p-14f, -0.0f, INFINITY, -INFINITY}));
  EXPECT_TRUE(std::signbit(file.floats("f16")[6]));
  EXPECT_EQ(file.integers("i32"), (std::vector<int64_t>{-5, 2147483647}));
  EXPECT_EQ(file.integers("u16"), (std::vector<int64_t>{65535, 0}));
  EXPECT_EQ(file.integers("u8"), std::vector<int64_t>{255});
}

TEST(Safetensors, ReadsTheGoldenFiles) {
  int64_t files = 0;
  for (const auto& item :
       std::filesystem::directory_iterator(test::source_folder() + "/tests/golden")) {
    if (item.path().extension() != ".safetensors") continue;
    ++files;
    const SafetensorsFile file(item.path().string());
    EXPECT_TRUE(file.metadata().count("case")) << item.path();
    EXPECT_GT(file.entries().size(), 2u);
    for (const auto& [name, entry] : file.entries()) {
      const size_t count =
          entry.dtype == "F32" ? file.floats(name).size() : file.integers(name).size();
      EXPECT_EQ(static_cast<int64_t>(count), entry.elements()) << name;
    }
  }
  EXPECT_GE(files, 10);
}

// --- damaged files ---

struct Damaged {
  const char* name;
  std::string bytes;
  const char* expected;  // after "PATH: "
};

std::string entry_json(const char* dtype, const char* shape, const char* offsets) {
  return fmt::format(R"({{"a":{{"dtype":{},"shape":{},"data_offsets":{}}}}})", dtype, shape,
                     offsets);
}

std::vector<Damaged> damaged_files() {
  const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  const auto with = [](const char* dtype, const char* shape, const char* offsets, size_t data = 8) {
    return file_bytes(entry_json(dtype, shape, offsets), data);
  };
  const auto two = [](int b0, int e0, int b1, int e1, size_t data) {
    return file_bytes(fmt::format(R"({{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}},)"
                                  R"("b":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}})",
                                  e0 - b0, b0, e0, e1 - b1, b1, e1),
                      data);
  };
  return {
      {"empty file", "", "holds 0 bytes; a .safetensors file has at least 8"},
      {"seven bytes", "1234567", "holds 7 bytes"},
      {"length past the end", little_endian(100) + good, "the header claims 100 bytes, but the"},
      {"length one too long", little_endian(good.size() + 1) + good, "the header claims 55 bytes"},
      {"length over 100 MB", little_endian(100000001) + good,
       "the header claims 100000001 bytes, a"},
      {"length all ones", little_endian(~0ull) + good, "the header claims 18446744073709551615"},
      {"length sign bit", little_endian(1ull << 63) + good,
       "the header claims 9223372036854775808"},
      {"length zero", little_endian(0), "the header does not begin with '{'"},
      {"a list", file_bytes("[1,2]", 0), "the header does not begin with '{'"},
      {"leading space", file_bytes(" {}", 0), "the header does not begin with '{'"},
      {"half the JSON", file_bytes(good.substr(0, 30), 8), "the header is not valid JSON ("},
      {"text after the JSON", file_bytes(good + "x", 8), "the header is not valid JSON ("},
      {"zero bytes after the JSON", file_bytes(good + std::string(2, '\0'), 8),
       "the header holds a zero byte"},
      {"newline in a bad name", file_bytes("{\"a\nb\":", 8), "the header is not valid JSON ("},
      {"not UTF-8", file_bytes("{\"\xFF\xFE\":1}", 0), "the header is not valid JSON ("},
      {"number too large", file_bytes("{\"a\":1e999}", 0), "the header is not valid JSON ("},
      {"deep nesting", file_bytes("{\"a\":" + std::string(100000, '['), 0),
       "the header is nested too deeply"},
      {"name twice",
       file_bytes(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                  R"("a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})",
                  8),
       "\"a\" occurs twice in the header"},
      {"field twice",
       file_bytes(R"({"a":{"dtype":"U8","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8),
       "\"dtype\" occurs twice in the header"},
      {"metadata no object", file_bytes(R"({"__metadata__":[1]})", 0),
       "__metadata__ is array, not an object"},
      {"metadata not text", file_bytes(R"({"__metadata__":{"step":3}})", 0),
       "__metadata__ \"step\" is number, not a string"},
      {"entry no object", file_bytes(R"({"a":3})", 0), "tensor \"a\" is number, not an object"},
      {"no dtype", file_bytes(R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8),
       "tensor \"a\" has no dtype"},
      {"no shape", file_bytes(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8),
       "tensor \"a\" has no shape"},
      {"no offsets", file_bytes(R"({"a":{"dtype":"F32","shape":[2]}})", 8),
       "tensor \"a\" has no data_offsets"},
      {"unknown field",
       file_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", 8),
       "tensor \"a\" has the unknown field \"x\""},
      {"dtype a number", with("7", "[2]", "[0,8]"), "tensor \"a\": dtype is number, not a string"},
      {"dtype unknown", with("\"F31\"", "[2]", "[0,8]"), "tensor \"a\": unknown dtype \"F31\""},
      {"dtype lower case", with("\"f32\"", "[2]", "[0,8]"), "tensor \"a\": unknown dtype \"f32\""},
      {"shape a number", with("\"F32\"", "2", "[0,8]"),
       "tensor \"a\": shape is number, not a list"},
      {"extent negative", with("\"F32\"", "[-2]", "[0,8]"), "tensor \"a\": shape holds -2, not a"},
      {"extent fraction", with("\"F32\"", "[2.0]", "[0,8]"),
       "tensor \"a\": shape holds 2.0, not a"},
      {"extent text", with("\"F32\"", "[\"2\"]", "[0,8]"),
       "tensor \"a\": shape holds \"2\", not a"},
      {"extent over int64", with("\"F32\"", "[9223372036854775808]", "[0,8]"),
       "tensor \"a\": shape holds 9223372036854775808, not a count"},
      {"product overflows", with("\"F32\"", "[4294967296,4294967296]", "[0,8]"),
       "tensor \"a\": the shape's product is too large"},
      {"bytes overflow", with("\"F64\"", "[2305843009213693952]", "[0,8]"),
       "tensor \"a\": the shape's product is too large"},
      {"one offset", with("\"F32\"", "[2]", "[8]"), "tensor \"a\": data_offsets is [8], not two"},
      {"three offsets", with("\"F32\"", "[2]", "[0,4,8]"), "tensor \"a\": data_offsets is [0,4,8]"},
      {"negative offset", with("\"F32\"", "[2]", "[-8,0]"), "tensor \"a\": data_offsets is [-8,0]"},
      {"offsets an object", with("\"F32\"", "[2]", "{}"), "tensor \"a\": data_offsets is {}, not"},
      {"begin after end", with("\"F32\"", "[2]", "[8,0]"), "tensor \"a\": begins at byte 8, after"},
      {"cut off", file_bytes(good, 7), "tensor \"a\": ends at byte 8, but the file holds 7 bytes"},
      {"end far past the file", with("\"F32\"", "[2]", "[0,9223372036854775807]"),
       "tensor \"a\": ends at byte 9223372036854775807"},
      {"span too small", with("\"F32\"", "[2]", "[0,4]", 4),
       "tensor \"a\": F32 of its shape takes 8"},
      {"span too large", with("\"F32\"", "[1]", "[0,8]"),
       "tensor \"a\": F32 of its shape takes 4 b"},
      {"scalar of wrong size", with("\"F32\"", "[]", "[0,8]"),
       "tensor \"a\": F32 of its shape take"},
      {"overlap", two(0, 8, 4, 12, 12), "tensor \"b\" begins at byte 4, inside the one before it"},
      {"same place", two(0, 8, 0, 8, 8), "tensor \"b\" begins at byte 0, inside the one before it"},
      {"hole at the start", two(2, 4, 4, 8, 8), "bytes 0 to 2 before tensor \"a\" belong to no"},
      {"hole between", two(0, 4, 6, 8, 8), "bytes 4 to 6 before tensor \"b\" belong to no tensor"},
      {"rest at the end", file_bytes(good, 9), "1 bytes after the last tensor belong to no tensor"},
      {"rest without tensors", file_bytes("{}", 3), "3 bytes after the last tensor belong to no"},
  };
}

TEST(Safetensors, DamagedFilesAreRefused) {
  const TemporaryFolder folder;
  const std::vector<Damaged> cases = damaged_files();
  EXPECT_GE(cases.size(), 50u);
  for (const Damaged& damaged : cases) {
    SCOPED_TRACE(damaged.name);
    const std::string path = folder.write("a.safetensors", damaged.bytes);
    const std::string message = message_of([&] { SafetensorsFile file(path); });
    const std::string expected = path + ": " + damaged.expected;
    EXPECT_EQ(message.substr(0, expected.size()), expected);
    EXPECT_LT(message.size(), 400u) << message;
    for (const char c : message) EXPECT_GE(static_cast<unsigned char>(c), 0x20) << message;
  }
}

TEST(Safetensors, TimeIsLinearInTensors) {
  // Quadratic reading of so many took minutes; linear takes about a second under sanitizers.
  const TemporaryFolder folder;
  const std::string path = folder.file("many.safetensors");
  const float value = 3;
  std::vector<SafetensorsTensor> tensors;
  for (int i = 0; i < 50'000; ++i)
    tensors.push_back({fmt::format("layers.{}.weight", i), DType::kF32, {1}, &value});
  const auto start = std::chrono::steady_clock::now();
  write_safetensors(path, tensors);
  const SafetensorsFile file(path);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(file.entries().size(), 50'000u);
  EXPECT_EQ(file.floats("layers.49999.weight"), std::vector<float>{3});
  EXPECT_LT(seconds.count(), 20);
}

TEST(Safetensors, AFileCutWhileOpenIsNamed) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  const std::vector<float> values(1000, 1);
  write_safetensors(path, {{"a", DType::kF32, {1000}, values.data()}});
  const SafetensorsFile file(path);
  std::filesystem::resize_file(path, 500);
  const std::string message = message_of([&] { file.floats("a"); });
  EXPECT_EQ(message.substr(0, path.size() + 19), path + ": holds 500 bytes, ");
}

TEST(Safetensors, BadPaths) {
  const TemporaryFolder folder;
  const std::string missing = folder.file("no.safetensors");
  EXPECT_EQ(message_of([&] { SafetensorsFile file(missing); }),
            missing + ": cannot be read: No such file or directory");
  EXPECT_EQ(message_of([&] { SafetensorsFile file(folder.path()); }),
            folder.path() + ": is a folder, not a regular file");
  EXPECT_EQ(message_of([&] { SafetensorsFile file("/dev/null"); }),
            "/dev/null: is a device, not a regular file");
  EXPECT_EQ(message_of([&] { write_safetensors(folder.file("no/a"), {}); }),
            folder.file("no/a") + ": cannot be written: No such file or directory");
}

TEST(Safetensors, AFullDiskIsAnError) {
  const float value = 1;
  EXPECT_EQ(message_of([&] {
              write_safetensors("/dev/full", {{"a", DType::kF32, {1}, &value}});
            }),
            "/dev/full: cannot be written: No space left on device");
}

TEST(Safetensors, MisuseOfTheWriterIsAnError) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  const float value = 1;
  const auto write = [&](const std::vector<SafetensorsTensor>& tensors) {
    return message_of([&] { write_safetensors(path, tensors); });
  };
  EXPECT_NE(write({{"a", DType::kF32, {1}, &value}, {"a", DType::kF32, {1}, &value}})
                .find("tensor \"a\" is given twice"),
            std::string::npos);
  EXPECT_NE(write({{"a", DType::kF32, {1}, nullptr}}).find("tensor \"a\" has no data"),
            std::string::npos);
  EXPECT_NE(write({{"a", DType::kF32, {-1}, &value}}).find("extent -1"), std::string::npos);
  EXPECT_NE(write({{"a", DType::kF32, {1ll << 40, 1ll << 40}, &value}}).find("too large"),
            std::string::npos);
  EXPECT_NE(write({{"__metadata__", DType::kF32, {1}, &value}}).find("no tensor name"),
            std::string::npos);
  EXPECT_NE(write({{"\xFF", DType::kF32, {1}, &value}}).find("not UTF-8"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(path)) << "nothing is written before the checks";
}

TEST(Safetensors, LargeTensorsGoThroughInChunks) {
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  std::vector<float> values((17 << 20) / 4 + 3);  // more than one write of 16 MiB, and a tail
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 8191);
  write_safetensors(path,
                    {{"a", DType::kF32, {static_cast<int64_t>(values.size())}, values.data()}});
  EXPECT_EQ(SafetensorsFile(path).floats("a"), values);
}

TEST(Safetensors, MutationsOnlyEverThrowErrors) {
  // Bytes are changed, inserted, removed and the file is cut; what still opens must be readable in
  // full (the sanitizer build watches the reads).
  const TemporaryFolder folder;
  const std::string path = folder.file("a.safetensors");
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  const std::vector<int64_t> counts{7, 8};
  write_safetensors(
      path, {{"w", DType::kF32, {2, 3}, values.data()}, {"n", DType::kI64, {2}, counts.data()}},
      {{"k", "v"}});
  const std::string good = test::read_whole_file(path);
  uint64_t state = 1;
  const auto next = [&](uint64_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % below;
  };
  int64_t refused = 0, opened = 0;
  for (int i = 0; i < 4000; ++i) {
    std::string bytes = good;
    const int64_t changes = 1 + static_cast<int64_t>(next(3));
    for (int64_t k = 0; k < changes; ++k) {
      const size_t at = next(bytes.size());
      switch (next(6)) {
        case 0:
          bytes[at] = static_cast<char>(next(256));
          break;
        case 1:
          bytes[at] = "0123456789[]{}\",:-"[next(18)];
          break;
        case 2:
          bytes[next(8)] = static_cast<char>(next(256));  // the header's length
          break;
        case 3:
          bytes.insert(at, 1, "0123456789[]{}\",:-e."[next(20)]);
          bytes[0] = static_cast<char>(bytes[0] + 1);  // keeps the header's end in place
          break;
        case 4:
          bytes.erase(at, 1 + next(4));
          break;
        default:
          bytes.resize(at + 1);
      }
      if (bytes.size() < 9) bytes.resize(9);
    }
    folder.write("a.safetensors", bytes);
    try {
      const SafetensorsFile file(path);
      ++opened;
      int64_t sum = 0;
      for (const auto& [name, entry] : file.entries()) {
        std::vector<unsigned char> data(static_cast<size_t>(entry.end - entry.begin));
        file.read(name, 0, data.data(), entry.end - entry.begin);
        for (int64_t b = 0; b < entry.end - entry.begin; ++b) sum += data[b];
      }
      EXPECT_GE(sum, 0);
    } catch (const Error& e) {
      ++refused;
      ASSERT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    }
  }
  EXPECT_GT(refused, 2000);
  EXPECT_GT(opened, 100);
}

}  // namespace
}  // namespace longnet
