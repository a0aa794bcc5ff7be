// Dataset against a naive reading of the same bytes: formats, joins, cache, splits, orders, shards,
// and one message per kind of bad input.
#include "data/dataset.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <thread>
#include <vector>

#include "core/error.h"
#include "support/temporary_folder.h"

namespace longnet {
namespace {

namespace fs = std::filesystem;
using test::TemporaryFolder;
using testing::HasSubstr;
using Tokens = std::vector<int64_t>;

std::string some_bytes(int64_t count, uint64_t seed = 1) {
  std::string bytes(static_cast<size_t>(count), '\0');
  for (char& c : bytes) c = static_cast<char>((seed = seed * 6364136223846793005u + 1) >> 56);
  return bytes;
}

Tokens as_tokens(const std::string& bytes) {
  Tokens tokens;
  for (unsigned char c : bytes) tokens.push_back(c);
  return tokens;
}

template <typename T>
std::string packed(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string header(int32_t magic, int32_t version, int32_t tokens) {
  std::vector<int32_t> words(256, 0);
  words[0] = magic, words[1] = version, words[2] = tokens;
  return packed(words);
}

void write_gz(const std::string& path, const std::string& bytes) {
  gzFile file = gzopen(path.c_str(), "wb");
  ASSERT_NE(file, nullptr);
  ASSERT_EQ(gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size())),
            static_cast<int>(bytes.size()));
  ASSERT_EQ(gzclose(file), Z_OK);
}

class DatasetTest : public testing::Test {
 protected:
  DatasetTest() {
    config.cache = folder.file("cache");
    config.split = "fraction";
    config.validation_fraction = 0;
  }
  /// Every file of the cache with its time.
  std::vector<std::string> cache_files() const {
    std::vector<std::string> names;
    if (fs::exists(config.cache))
      for (const auto& entry : fs::directory_iterator(config.cache)) {
        struct stat info {};
        stat(entry.path().c_str(), &info);
        names.push_back(fmt::format("{} {}.{}", entry.path().string(), info.st_mtim.tv_sec,
                                    info.st_mtim.tv_nsec));
      }
    std::sort(names.begin(), names.end());
    return names;
  }
  /// The message of opening (and reading the first sample of) the configured data.
  std::string message(Split split = Split::kTrain, int64_t n = 8, int64_t vocab = 256) const {
    try {
      Dataset data(config, split, n, vocab);
      Tokens tokens(n), targets(n);
      data.read(0, 0, n, tokens.data(), targets.data());
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
      return error.what();
    }
    return "no error";
  }
  /// Every (sample, begin, length) read agrees with `expected`.
  void expect_reads(const Tokens& expected, int64_t n, int64_t vocab = 256,
                    Split split = Split::kTrain) const {
    const Dataset data(config, split, n, vocab);
    ASSERT_EQ(data.tokens(), static_cast<int64_t>(expected.size()));
    ASSERT_EQ(data.samples(), (data.tokens() - 1) / n);
    for (int64_t sample = 0; sample < data.samples(); ++sample)
      for (int64_t begin = 0; begin <= n; ++begin)
        for (int64_t length = 0; begin + length <= n; ++length) {
          Tokens tokens(length), targets(length);
          data.read(sample, begin, length, tokens.data(), targets.data());
          const auto first = expected.begin() + sample * n + begin;
          ASSERT_EQ(tokens, Tokens(first, first + length)) << sample << " " << begin;
          ASSERT_EQ(targets, Tokens(first + 1, first + 1 + length)) << sample << " " << begin;
        }
  }

  TemporaryFolder folder;
  DataConfig config;
};

TEST_F(DatasetTest, EveryReadOfBytesAgreesWithTheFile) {
  for (int64_t size : {2, 8, 9, 10, 33, 100}) {
    const std::string bytes = some_bytes(size);
    config.train = {folder.write("text", bytes)};
    for (int64_t n : {1, 7, 8})
      if (n < size) expect_reads(as_tokens(bytes), n);
  }
  EXPECT_TRUE(cache_files().empty()) << "a plain file is read in place";
  const Dataset data(config, Split::kTrain, 8, 256);
  EXPECT_EQ(data.bytes_per_token(), 1.0);
  EXPECT_THAT(data.description(), HasSubstr("100 bytes in 1 file"));
}

TEST_F(DatasetTest, ShardsConcatenatedAreTheWholeAlsoFromThreads) {
  const std::string bytes = some_bytes(1 << 16);
  config.train = {folder.write("text", bytes)};
  const int64_t n = 1 << 12;
  const Dataset data(config, Split::kTrain, n, 256);
  for (int ranks : {1, 2, 4, 8}) {
    Tokens tokens(n), targets(n);
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks; ++rank)
      threads.emplace_back([&, rank] {
        const int64_t local_n = n / ranks;
        data.read(3, rank * local_n, local_n, &tokens[rank * local_n], &targets[rank * local_n]);
      });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(tokens, as_tokens(bytes.substr(3 * n, n)));
    EXPECT_EQ(targets, as_tokens(bytes.substr(3 * n + 1, n)));
  }
}

TEST_F(DatasetTest, TokenFilesWithAndWithoutHeaderJoinAcrossFiles) {
  const std::vector<uint16_t> a{1, 300, 65535, 4, 5}, b{6, 7, 8, 9, 10, 11, 12};
  Tokens expected(a.begin(), a.end());
  expected.insert(expected.end(), b.begin(), b.end());
  config.train = {folder.write("a.bin", header(20240520, 1, 5) + packed(a)),
                  folder.write("b.bin", header(20240520, 1, 7) + packed(b))};
  expect_reads(expected, 5, 65536);
  EXPECT_EQ(Dataset(config, Split::kTrain, 5, 65536).bytes_per_token(), 0.0);
  config.bytes_per_token = 4.5;
  EXPECT_EQ(Dataset(config, Split::kTrain, 5, 65536).bytes_per_token(), 4.5);
  config.format = "tokens_u16";
  config.train = {folder.write("plain.bin", packed(a) + packed(b))};
  expect_reads(expected, 5, 65536);
  const std::vector<uint32_t> c{70000, 2, 3, 128255, 5};
  config.format = "tokens_u32";
  config.train = {folder.write("plain32.bin", packed(c))};
  expect_reads(Tokens(c.begin(), c.end()), 2, 128256);
  config.format = "auto";
  config.train = {folder.write("llama.bin", header(20240801, 7, 5) + packed(c))};
  expect_reads(Tokens(c.begin(), c.end()), 2, 128256);
}

TEST_F(DatasetTest, FoldersAndGlobsAreSortedFilteredAndJoined) {
  fs::create_directories(folder.file("tree/sub"));
  folder.write("tree/b.c", "bbbb");
  folder.write("tree/a.h", "aaa");
  folder.write("tree/sub/z.c", "zz");
  folder.write("tree/skip.txt", "no");
  config.train = {folder.file("tree")};
  config.extensions = ".c, .h";
  expect_reads(as_tokens(std::string("aaa\0bbbb\0zz", 11)), 3);
  config.separator = 10;
  expect_reads(as_tokens("aaa\nbbbb\nzz"), 3);
  config.separator = -1;
  expect_reads(as_tokens("aaabbbbzz"), 3);
  config.train = {folder.file("tree/*.c"), folder.file("tree/a.h")};
  expect_reads(as_tokens("bbbbaaa"), 3);
}

TEST_F(DatasetTest, ACacheInsideTheFolderIsNoData) {
  fs::create_directories(folder.file("tree"));
  folder.write("tree/a", "aaaa");
  folder.write("tree/b", "bbbb");
  config.train = {folder.file("tree")};
  config.cache = folder.file("tree/cache");
  for (int time = 0; time < 2; ++time) expect_reads(as_tokens(std::string("aaaa\0bbbb", 9)), 3);
}

TEST_F(DatasetTest, JoinedFilesAreReusedAndRemadeWhenASourceChanges) {
  const std::string a = folder.write("a", "aaaa");
  config.train = {a, folder.write("b", "bbbb")};
  expect_reads(as_tokens(std::string("aaaa\0bbbb", 9)), 3);
  const auto first = cache_files();
  ASSERT_EQ(first.size(), 2u) << "the joined file and its manifest";
  EXPECT_THAT(first[1], HasSubstr(".joined.json"));
  expect_reads(as_tokens(std::string("aaaa\0bbbb", 9)), 3);
  EXPECT_EQ(cache_files(), first);
  folder.write("a", "AAAA");  // same size, other time
  const struct timespec times[2] = {{1, 0}, {1, 0}};
  ASSERT_EQ(utimensat(AT_FDCWD, a.c_str(), times, 0), 0);
  expect_reads(as_tokens(std::string("AAAA\0bbbb", 9)), 3);
}

TEST_F(DatasetTest, GzIsUnpackedOnceAndRemadeWhenChanged) {
  const std::string bytes = some_bytes(5000), path = folder.file("text.gz");
  config.train = {path};
  write_gz(path, bytes);
  expect_reads(as_tokens(bytes), 8);
  const auto first = cache_files();
  ASSERT_EQ(first.size(), 2u) << "the unpacked file and its manifest";
  expect_reads(as_tokens(bytes), 8);
  EXPECT_EQ(cache_files(), first);
  write_gz(path, bytes + "more");
  expect_reads(as_tokens(bytes + "more"), 8);
}

TEST_F(DatasetTest, FractionTakesTheEndAndOwnFilesTakePrecedence) {
  const std::string bytes = some_bytes(100);
  config.train = {folder.write("text", bytes)};
  config.validation_fraction = 0.2;
  expect_reads(as_tokens(bytes.substr(0, 80)), 8);
  expect_reads(as_tokens(bytes.substr(80)), 8, 256, Split::kValidation);
  config.validation = {folder.write("other", "validation")};
  expect_reads(as_tokens(bytes), 8);
  expect_reads(as_tokens("validation"), 8, 256, Split::kValidation);
}

TEST_F(DatasetTest, Enwik8SplitIs90And5And5MegaBytes) {
  const std::string path = folder.write("enwik8", "");
  ASSERT_EQ(truncate(path.c_str(), 100'000'000), 0);
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(90'000'000) << "V";
    file.seekp(95'000'000) << "T";
  }
  config.train = {path};
  config.split = "enwik8";
  const int64_t sizes[] = {90'000'000, 5'000'000, 5'000'000}, starts[] = {0, 'V', 'T'};
  const Split splits[] = {Split::kTrain, Split::kValidation, Split::kTest};
  for (int i = 0; i < 3; ++i) {
    const Dataset data(config, splits[i], 8, 256);
    EXPECT_EQ(data.tokens(), sizes[i]);
    int64_t token, target;
    data.read(0, 0, 1, &token, &target);
    EXPECT_EQ(token, starts[i]);
  }
}

TEST_F(DatasetTest, ShuffledIsAPermutationPerEpochAndSeed) {
  config.train = {folder.write("text", some_bytes(1001))};
  for (int64_t n : {1, 2, 3, 7, 15, 16, 60, 250, 500, 1000}) {
    const Dataset data(config, Split::kTrain, n, 256);
    auto order = [&](int64_t epoch, int64_t seed, const std::string& name) {
      Tokens places;
      DataState state{epoch, 0};
      for (; state.epoch == epoch; advance(state, data.samples()))
        places.push_back(data.sample_index(state, seed, name));
      EXPECT_EQ(state, (DataState{epoch + 1, 0}));
      return places;
    };
    Tokens all(data.samples());
    for (int64_t i = 0; i < data.samples(); ++i) all[i] = i;
    EXPECT_EQ(order(0, 1, "sequential"), all);
    const Tokens first = order(0, 1, "shuffled");
    EXPECT_EQ(std::set<int64_t>(first.begin(), first.end()),
              std::set<int64_t>(all.begin(), all.end()));
    EXPECT_EQ(first.size(), all.size());
    EXPECT_EQ(order(0, 1, "shuffled"), first);
    if (data.samples() < 15) continue;
    EXPECT_NE(first, all);
    EXPECT_NE(order(1, 1, "shuffled"), first);
    EXPECT_NE(order(0, 2, "shuffled"), first);
  }
}

TEST_F(DatasetTest, FingerprintTellsContentsApartAndNotPathsOrTimes) {
  const auto print = [&] { return Dataset(config, Split::kTrain, 8, 65536).fingerprint(); };
  const std::string bytes = some_bytes(1000);
  config.train = {folder.write("text", bytes)};
  const DataFingerprint first = print();
  EXPECT_EQ(first.files, 1);
  EXPECT_EQ(first.bytes, 1000);
  EXPECT_EQ(first.hash.size(), 16u);
  config.train = {folder.write("elsewhere", bytes)};
  EXPECT_EQ(print(), first);
  write_gz(folder.file("packed.gz"), bytes);
  config.train = {folder.file("packed.gz")};
  EXPECT_EQ(print(), first);
  for (size_t place : {size_t{0}, size_t{500}, size_t{999}}) {
    std::string other = bytes;
    other[place] ^= 1;
    config.train = {folder.write("text", other)};
    EXPECT_NE(print().hash, first.hash) << place;
  }
  config.format = "tokens_u16";  // the same bytes, other tokens
  config.train = {folder.write("elsewhere", bytes)};
  EXPECT_NE(print().hash, first.hash);
}

TEST_F(DatasetTest, FingerprintOfLargeDataIsSampled) {
  const std::string path = folder.write("large", "");
  ASSERT_EQ(truncate(path.c_str(), int64_t{1} << 40), 0);
  config.train = {path};
  const Dataset data(config, Split::kTrain, 8, 256);
  const DataFingerprint first = data.fingerprint();
  EXPECT_EQ(first.bytes, int64_t{1} << 40);
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary)
      .seekp((int64_t{1} << 40) - 1)
      .put('x');
  EXPECT_NE(data.fingerprint().hash, first.hash);
}

TEST_F(DatasetTest, AFileCutWhileInUseIsNamed) {
  config.train = {folder.write("text", some_bytes(100'000))};
  const Dataset data(config, Split::kTrain, 1000, 256);
  Tokens tokens(1000), targets(1000);
  data.read(50, 0, 1000, tokens.data(), targets.data());
  ASSERT_EQ(truncate(config.train[0].c_str(), 20'000), 0);
  data.read(10, 0, 1000, tokens.data(), targets.data());
  try {
    data.read(50, 0, 1000, tokens.data(), targets.data());
    FAIL() << "read what is not there";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("text: holds 20000 bytes, it held 100000"));
  }
}

TEST_F(DatasetTest, ACacheFileThatIsNoLongerIntactIsMadeAnew) {
  const std::string bytes = some_bytes(5000);
  write_gz(folder.file("text.gz"), bytes);
  folder.write("a", "aaaa");
  folder.write("b", "bbbb");
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases{
      {{folder.file("text.gz")}, bytes},
      {{folder.file("a"), folder.file("b")}, std::string("aaaa\0bbbb", 9)}};
  for (const auto& [train, expected] : cases) {
    fs::remove_all(config.cache);
    config.train = train;
    expect_reads(as_tokens(expected), 3);
    std::string cached, manifest;
    for (const auto& entry : fs::directory_iterator(config.cache))
      (entry.path().extension() == ".json" ? manifest : cached) = entry.path().string();
    fs::resize_file(cached, 6);  // cut
    expect_reads(as_tokens(expected), 3);
    std::fstream(cached, std::ios::in | std::ios::out | std::ios::binary).seekp(3).put('?');
    expect_reads(as_tokens(expected), 3);
    for (const char* damaged : {"", "[]", "{\"bytes\": \"x\", \"hash\": 3}", "\xff"}) {
      std::ofstream(manifest) << damaged;
      expect_reads(as_tokens(expected), 3);
    }
    fs::remove(manifest);
    expect_reads(as_tokens(expected), 3);
    EXPECT_TRUE(fs::exists(manifest));
  }
}

TEST_F(DatasetTest, LeftoversInTheCacheAreRemoved) {
  fs::create_directories(config.cache);
  const std::string left = config.cache + "/text.unpacked.tmp123-1";
  std::ofstream(left) << "half";
  config.train = {folder.write("text", some_bytes(100))};
  EXPECT_EQ(message(), "no error");
  EXPECT_FALSE(fs::exists(left));
}

TEST_F(DatasetTest, GzOfSeveralMembersIsJoinedAndRestsAreRefused) {
  const std::string a = some_bytes(9000, 1), b = some_bytes(5000, 2);
  write_gz(folder.file("a.gz"), a);
  write_gz(folder.file("b.gz"), b);
  const std::string first = test::read_whole_file(folder.file("a.gz")),
                    second = test::read_whole_file(folder.file("b.gz"));
  const auto with = [&](const std::string& bytes) {
    config.train = {folder.write("text.gz", bytes)};
    return message();
  };
  EXPECT_EQ(with(first + second), "no error");
  expect_reads(as_tokens(a + b), 8);
  EXPECT_EQ(with(first + second + std::string(512, '\0')), "no error") << "padding, as on tapes";
  expect_reads(as_tokens(a + b), 8);
  const auto rest = HasSubstr(
      fmt::format("text.gz: the bytes from {} on are neither gzip data nor padding", first.size()));
  EXPECT_THAT(with(first + "rest"), rest);
  EXPECT_THAT(with(first + "\x1f"), rest);
  std::string damaged = second;
  damaged[0] ^= 1;  // half of the data would be lost without a word
  EXPECT_THAT(with(first + damaged), rest);
  damaged = second;
  damaged[2] ^= 1;
  EXPECT_THAT(with(first + damaged), HasSubstr("damaged or truncated"));
  for (size_t cut : {size_t{2}, size_t{9}, second.size() / 2, second.size() - 1})
    EXPECT_THAT(with(first + second.substr(0, cut)), HasSubstr("damaged or truncated")) << cut;
  EXPECT_THAT(with(""), HasSubstr("text.gz: holds 0 bytes, so it is no gzip file"));
}

TEST_F(DatasetTest, OwnOutputAndHiddenFilesAreNoData) {
  for (const char* name : {"tree/.git", "tree/runs/a/step-00000010", "tree/runs/b", "tree/cache",
                           "tree/runs/c", "tree/copy"})
    fs::create_directories(folder.file(name));
  for (const char* name :
       {"tree/.git/config", "tree/.hidden", "tree/runs/a/step-00000010/state.json",
        "tree/runs/a/step-00000010/model.safetensors", "tree/runs/a/notes", "tree/runs/b/log.txt",
        "tree/runs/b/metrics.jsonl", "tree/runs/c/run.lock", "tree/runs/c/log.txt",
        "tree/cache/old", "tree/copy/state.json", "tree/copy/model.safetensors"})
    folder.write(name, "output");
  folder.write("tree/a", "aaaa");
  folder.write("tree/log.txt", "bbbb");  // a user's: no run folder
  config.cache = folder.file("tree/cache");
  config.train = {folder.file("tree")};
  expect_reads(as_tokens(std::string("aaaa\0bbbb", 9)), 3);
  const std::string text = Dataset(config, Split::kTrain, 3, 256).description();
  EXPECT_THAT(text, HasSubstr("9 bytes in 2 files"));
  EXPECT_THAT(text, HasSubstr("left out: 4 run folders ("));
  EXPECT_THAT(text, HasSubstr("1 data.cache, 2 hidden"));
  config.train = {folder.file("tree/runs/a")};
  EXPECT_THAT(message(), HasSubstr("runs/a is the folder of a run or a checkpoint, not data"));
  config.train = {folder.file("tree/runs/*")};
  EXPECT_THAT(message(), HasSubstr("matches run folders only"));
}

TEST_F(DatasetTest, AGlobTakesTheFoldersItMatches) {
  fs::create_directories(folder.file("tree/sub"));
  folder.write("tree/a", "aaaa");
  folder.write("tree/sub/b", "bbbb");
  config.train = {folder.file("tree/*")};
  expect_reads(as_tokens(std::string("aaaa\0bbbb", 9)), 3);
}

// ------------------------------------------------------------------------------ bad input

TEST_F(DatasetTest, WhatIsNoRegularFileIsRefusedAtOnce) {
  ASSERT_EQ(mkfifo(folder.file("pipe").c_str(), 0600), 0);
  config.train = {folder.file("pipe")};
  EXPECT_THAT(message(), HasSubstr("pipe is a pipe; data must be a regular file"));
  config.train = {"/dev/zero"};
  EXPECT_THAT(message(), HasSubstr("/dev/zero is a device; data must be a regular file"));
}

TEST_F(DatasetTest, FilesOfAnotherKindAreNotReadAsText) {
  std::string tar(512, '\0');
  tar.replace(257, 5, "ustar");
  std::string utf16;
  for (const char c : std::string("plain text in UTF-16\n")) utf16 += c, utf16 += '\0';
  std::string ids16, ids32;
  uint64_t seed = 1;
  for (int i = 0; i < 4000; ++i) {  // Zipf's law, as token files have it
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const double u = static_cast<double>(seed >> 11) * 0x1p-53;
    const uint32_t id = static_cast<uint32_t>(std::exp(u * std::log(50257.0))) - 1;
    const uint16_t narrow = static_cast<uint16_t>(id);
    ids16.append(reinterpret_cast<const char*>(&narrow), 2);
    ids32.append(reinterpret_cast<const char*>(&id), 4);
  }
  const std::string pad(100, 'x');
  const std::vector<std::pair<std::string, const char*>> cases{
      {"PK\x03\x04" + pad, "a zip archive"},
      {"\x1f\x8b\x08" + pad, "compressed by gzip"},
      {"\x28\xb5\x2f\xfd" + pad, "compressed by zstd"},
      {std::string("\xfd\x37zXZ\0", 6) + pad, "compressed by xz"},
      {"BZh91AY&SY" + pad, "compressed by bzip2"},
      {tar, "a tar archive"},
      {"\x89PNG\r\n\x1a\n" + pad, "a PNG picture"},
      {"%PDF-1.7" + pad, "a PDF document"},
      {"\x7f"
       "ELF" +
           pad,
       "a program (ELF)"},
      {"PAR1" + pad, "a parquet table"},
      {"\x89HDF\r\n\x1a\n" + pad, "an HDF5 file"},
      {"\x93NUMPY" + pad, "a NumPy array"},
      {header(20240326, 3, 1024), "a model file of llm.c"},
      {header(20240328, 2, 50257), "a tokenizer of llm.c"},
      {header(20240522, 1, 10), "an evaluation file of llm.c"},
      {std::string("\x0a\0\0\0\0\0\0\0{\"a\":{}}", 16) + pad, "a model file (safetensors)"},
      {"\xff\xfe" + utf16, "is UTF-16 text;"},
      {"\xfe\xff" + utf16, "is UTF-16 text;"},
      {utf16, "UTF-16 text without a byte-order mark"},
      {ids16, "whole numbers of 2 or 4 bytes"},
      {ids32, "whole numbers of 2 or 4 bytes"},
  };
  for (const auto& [bytes, kind] : cases) {
    config.format = "auto";
    config.train = {folder.write("data", bytes)};
    EXPECT_THAT(message(), HasSubstr(kind));
    EXPECT_THAT(message(), HasSubstr("data.format=bytes if its bytes are the data"));
    config.format = "bytes";
    EXPECT_EQ(message(), "no error") << kind;
  }
}

TEST_F(DatasetTest, TextsAndBytesOfEveryKindAreTaken) {
  std::string cyrillic, latin, table;
  uint64_t seed = 1;
  for (int i = 0; i < 5000; ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const char letter = static_cast<char>(seed >> 59);  // -16 .. 15
    cyrillic += i % 6 ? std::string("\xd0") + static_cast<char>(0xa0 + (letter & 31)) : " ";
    latin += static_cast<char>(0xe0 + (letter & 31));
    table += fmt::format("{}\t{}\r\n", i, i * i);
  }
  for (const std::string& text : {cyrillic, latin, table, "\xef\xbb\xbf" + table, some_bytes(20000),
                                  std::string(20000, '\0'), std::string(20000, 'A')}) {
    config.train = {folder.write("data", text)};
    EXPECT_EQ(message(), "no error") << text.substr(0, 20);
  }
}

TEST_F(DatasetTest, BinFilesWithoutAHeaderAreNotGuessed) {
  config.train = {folder.write("x.bin", some_bytes(1000))};
  EXPECT_THAT(message(), HasSubstr("x.bin: a .bin file without llm.c's header; set "
                                   "data.format=tokens_u16 or tokens_u32"));
  EXPECT_THAT(message(), HasSubstr("data.format=bytes if every byte is a token"));
  config.format = "bytes";
  EXPECT_EQ(message(), "no error");
}

TEST_F(DatasetTest, TrainingAndValidationAreOfOneKind) {
  config.train = {folder.write("text", some_bytes(100))};
  config.validation = {
      folder.write("ids.bin", header(20240520, 1, 20) + packed(std::vector<uint16_t>(20, 1)))};
  EXPECT_THAT(message(Split::kValidation), HasSubstr("ids.bin holds tokens, data.train text or"));
  std::swap(config.train, config.validation);
  EXPECT_THAT(message(Split::kValidation),
              HasSubstr("text holds text or bytes, data.train tokens"));
  config.train = {folder.file("on another machine")};
  EXPECT_EQ(message(Split::kValidation), "no error");
}

TEST_F(DatasetTest, IdsOutsideTheVocabularyAreFoundWhenOpened) {
  std::vector<uint16_t> ids(100'000, 1);
  ids[77'777] = 5000;
  config.train = {folder.write("ids.bin", header(20240520, 1, 100'000) + packed(ids))};
  EXPECT_THAT(message(Split::kTrain, 8, 5000),
              HasSubstr(fmt::format("token 5000 at byte {} is outside", 1024 + 2 * 77'777)));
  EXPECT_EQ(message(Split::kTrain, 8, 5001), "no error");
}

TEST_F(DatasetTest, RemediesFitThePath) {
  config.train = {"data/gcide.txt"};
  EXPECT_THAT(message(), HasSubstr("data/gcide.txt: no such file or folder; make it with "
                                   "scripts/data_gcide.sh"));
  folder.write("book.txt", "text");
  config.train = {folder.file("bok.txt")};
  EXPECT_THAT(message(), HasSubstr("nearest: " + folder.file("book.txt")));
  config.train = {folder.file("none/book.txt")};
  EXPECT_THAT(message(), HasSubstr("there is no folder " + folder.file("none") + " either"));
}

TEST_F(DatasetTest, UnreadableFilesAndFoldersAreRefusedAlike) {
  if (geteuid() == 0) GTEST_SKIP() << "root reads everything";
  fs::create_directories(folder.file("tree/closed"));
  folder.write("tree/a", "aaaa");
  folder.write("tree/closed/b", "bbbb");
  ASSERT_EQ(chmod(folder.file("tree/closed").c_str(), 0), 0);
  for (const char* entry : {"tree", "tree/*/*"}) {
    config.train = {folder.file(entry)};
    EXPECT_THAT(message(), HasSubstr("tree/closed cannot be read: Permission denied")) << entry;
  }
  ASSERT_EQ(chmod(folder.file("tree/closed").c_str(), 0700), 0);
}

TEST_F(DatasetTest, BadPathsAreNamed) {
  EXPECT_THAT(message(), HasSubstr("data.train: no data given"));
  config.train = {folder.file("absent")};
  EXPECT_THAT(message(), HasSubstr("absent: no such file or folder"));
  config.train = {folder.file("*.none")};
  EXPECT_THAT(message(), HasSubstr("no file matches " + folder.file("*.none")));
  fs::create_directories(folder.file("empty"));
  config.train = {folder.file("empty")};
  EXPECT_THAT(message(), HasSubstr("holds no file; check"));
  folder.write("empty/x.txt", "x");
  config.extensions = ".c,.h";
  EXPECT_THAT(message(), HasSubstr("holds no file ending in .c,.h"));
}

TEST_F(DatasetTest, TooLittleDataSaysHowMuch) {
  config.train = {folder.write("none", "")};
  EXPECT_THAT(message(), HasSubstr("none is empty"));
  config.train = {folder.write("few", "12345678")};
  EXPECT_THAT(message(), HasSubstr("has 8 tokens, a sequence and its last target need 9; set "
                                   "train.sequence_length to at most 7"));
  EXPECT_EQ(message(Split::kTrain, 7), "no error");
  EXPECT_THAT(message(Split::kValidation),
              HasSubstr("need 9; give more data or raise data.validation_fraction"));
}

TEST_F(DatasetTest, TokensOutsideTheVocabularyAreNamed) {
  config.train = {folder.write("text", some_bytes(100))};
  EXPECT_THAT(message(Split::kTrain, 8, 255), HasSubstr("at least 256, not 255"));
  const std::vector<uint16_t> ids{1, 2, 3, 999, 5, 6, 7, 8, 9, 10};
  config.train = {folder.write("ids.bin", header(20240520, 1, 10) + packed(ids))};
  EXPECT_THAT(message(Split::kTrain, 8, 999),
              HasSubstr("ids.bin: token 999 at byte 1030 is outside the vocabulary; allowed: 0 "
                        "to 998"));
  EXPECT_EQ(message(Split::kTrain, 8, 1000), "no error");
}

TEST_F(DatasetTest, DamagedGzLeavesNoFile) {
  const std::string path = folder.file("text.gz");
  write_gz(path, some_bytes(100000));
  const std::string whole = test::read_whole_file(path);
  config.train = {path};
  folder.write("text.gz", whole.substr(0, whole.size() / 2));
  EXPECT_THAT(message(),
              HasSubstr("text.gz: damaged or truncated gzip file (unexpected end near byte "));
  folder.write("text.gz", whole.substr(0, whole.size() - 4));
  EXPECT_THAT(message(), HasSubstr("text.gz: damaged or truncated"));
  std::string flipped = whole;
  flipped[whole.size() - 6] ^= 1;  // in the checksum
  folder.write("text.gz", flipped);
  EXPECT_THAT(message(), HasSubstr("text.gz: damaged or truncated"));
  folder.write("text.gz", "this is plain text");
  EXPECT_THAT(message(), HasSubstr("text.gz: not a gzip file"));
  EXPECT_TRUE(cache_files().empty());
}

TEST_F(DatasetTest, BadTokenFilesAreNamed) {
  const std::string ids = packed(std::vector<uint16_t>(20, 1));
  config.train = {folder.write("x.bin", header(20240520, 1, 21) + ids)};
  EXPECT_THAT(message(),
              HasSubstr("header promises 21 tokens, which makes 1066 bytes in all, the file "
                        "holds 1064; it is truncated"));
  config.train = {folder.write("x.bin", header(20240520, 1, 20) + ids + "x")};
  EXPECT_THAT(message(), HasSubstr("20 tokens, which makes 1064 bytes in all, the file holds 1065; "
                                   "it has bytes that do not belong to it"));
  config.train = {folder.write("x.bin", header(20240520, 3, 20) + ids)};
  EXPECT_THAT(message(), HasSubstr("header of version 3; version 1 is read"));
  config.train = {folder.write("x.bin", header(20240520, 1, 20).substr(0, 500))};
  EXPECT_THAT(message(), HasSubstr("500 bytes, shorter than llm.c's header"));
  config.train = {folder.write("x.bin", header(20240520, 1, 20) + ids)};
  config.format = "tokens_u32";
  EXPECT_THAT(message(), HasSubstr("header says 2-byte tokens, data.format says tokens_u32"));
  config.train = {folder.write("odd.bin", some_bytes(41))};
  EXPECT_THAT(message(), HasSubstr("41 bytes is no whole number of 4-byte tokens"));
  config.format = "auto";
  config.train = {folder.write("x.bin", header(20240520, 1, 20) + ids), folder.write("t", "text")};
  EXPECT_THAT(message(), HasSubstr("give files of one kind"));
}

TEST_F(DatasetTest, SplitsThatCannotBeAreRefused) {
  config.train = {folder.write("text", some_bytes(100))};
  EXPECT_THAT(message(Split::kTest), HasSubstr("there is no test part"));
  config.split = "enwik8";
  EXPECT_THAT(message(), HasSubstr("needs exactly 100000000 bytes"));
  config.validation = config.train;
  EXPECT_THAT(message(Split::kTest), HasSubstr("there is no test part"));
}

TEST_F(DatasetTest, ACacheThatCannotBeWrittenIsNamed) {
  config.train = {folder.write("a", "aaaaaaaa"), folder.write("b", "bbbbbbbb")};
  config.cache = folder.file("a") + "/cache";  // a file where a folder should be
  EXPECT_THAT(message(), HasSubstr("cache cannot be made: Not a directory; set data.cache to"));
}

TEST_F(DatasetTest, AnUnreadableFileIsNamed) {
  if (geteuid() == 0) GTEST_SKIP() << "root reads everything";
  config.train = {folder.write("closed", some_bytes(100))};
  ASSERT_EQ(chmod(config.train[0].c_str(), 0), 0);
  EXPECT_THAT(message(), HasSubstr("closed: cannot be"));
}

}  // namespace
}  // namespace longnet
