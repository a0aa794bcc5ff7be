// The log: form of a line, levels, which rank writes which file.
#include "core/log.h"

#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <filesystem>

#include "core/error.h"
#include "support/temporary_folder.h"

namespace longnet {
namespace {

using test::read_whole_file;
using test::TemporaryFolder;

/// The text with every digit replaced by 0, so that only the form is compared.
std::string digits_as_zero(std::string text) {
  for (char& c : text)
    if (c >= '0' && c <= '9') c = '0';
  return text;
}

/// Puts back the logger that was there.
class Log : public testing::Test {
 protected:
  void TearDown() override { spdlog::set_default_logger(before_); }
  std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
};

TEST_F(Log, RankZeroWritesConsoleAndFile) {
  const TemporaryFolder folder;
  testing::internal::CaptureStderr();
  testing::internal::CaptureStdout();
  init_log(0, folder.path(), "info");
  spdlog::debug("hidden");
  log_info("step {} of {}", 3, 7);
  log_warn("second");
  const std::string console = testing::internal::GetCapturedStderr();
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "") << "standard output is for results";
  EXPECT_EQ(digits_as_zero(console),
            "0000-00-00 00:00:00.000 [rank 0] [info] step 0 of 0\n"
            "0000-00-00 00:00:00.000 [rank 0] [warning] second\n");
  EXPECT_NE(console.find("step 3 of 7"), std::string::npos);
  EXPECT_EQ(read_whole_file(folder.file("log.txt")), console);  // on disk before any shutdown
}

TEST_F(Log, OtherRanksWriteWarningsToTheirFile) {
  const TemporaryFolder folder;
  testing::internal::CaptureStderr();
  init_log(12, folder.path(), "debug");
  log_info("hidden");
  log_warn("seen");
  spdlog::error("also");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  const std::string text = read_whole_file(folder.file("log.rank12.txt"));
  EXPECT_EQ(text.find("hidden"), std::string::npos);
  EXPECT_NE(text.find("[rank 12] [warning] seen\n"), std::string::npos) << text;
  EXPECT_NE(text.find("[rank 12] [error] also\n"), std::string::npos) << text;
  EXPECT_FALSE(std::filesystem::exists(folder.file("log.txt")));
}

TEST_F(Log, LevelsHoldOnEveryRank) {
  for (const int rank : {0, 1}) {
    const TemporaryFolder folder;
    testing::internal::CaptureStderr();
    init_log(rank, folder.path(), "error");
    log_warn("hidden");
    spdlog::error("seen");
    testing::internal::GetCapturedStderr();
    const std::string text = read_whole_file(folder.file(rank == 0 ? "log.txt" : "log.rank1.txt"));
    EXPECT_EQ(text.find("hidden"), std::string::npos);
    EXPECT_NE(text.find("seen"), std::string::npos);
  }
  testing::internal::CaptureStderr();
  init_log(0, "", "debug");
  spdlog::debug("shown");
  EXPECT_NE(testing::internal::GetCapturedStderr().find("[rank 0] [debug] shown\n"),
            std::string::npos);
}

TEST_F(Log, MakesTheFolderAndAppends) {
  const TemporaryFolder folder;
  const std::string deep = folder.file("a/b");
  for (const char* text : {"first run", "second run"}) {
    testing::internal::CaptureStderr();
    init_log(0, deep, "info");
    log_info("{}", text);
    testing::internal::GetCapturedStderr();
  }
  const std::string text = read_whole_file(deep + "/log.txt");
  EXPECT_LT(text.find("first run"), text.find("second run"));
  EXPECT_NE(text.find("second run"), std::string::npos);
}

TEST_F(Log, WithoutAFolderOnlyRankZeroSpeaks) {
  testing::internal::CaptureStderr();
  init_log(3, "", "debug");
  spdlog::error("nobody hears it");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST_F(Log, BadArguments) {
  const auto message = [](const std::string& folder, const std::string& level) -> std::string {
    try {
      init_log(0, folder, level);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(message("", "loud"), "run.log_level: \"loud\" is not one of debug, info, warn, error");
  const TemporaryFolder folder;
  const std::string file = folder.write("file", "x");
  const std::string blocked = message(file + "/run", "info");
  EXPECT_EQ(blocked.rfind(file + "/run/log.txt: the log cannot be written: ", 0), 0u) << blocked;
  EXPECT_EQ(blocked.find('\n'), std::string::npos);
}

}  // namespace
}  // namespace longnet
