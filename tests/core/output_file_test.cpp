// OutputFile and InputFile: whole or not at all, leftovers of dead processes, irregular files,
// files that are cut while in use.
#include "core/output_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <vector>

#include "core/error.h"
#include "core/input_file.h"
#include "support/temporary_folder.h"

namespace longnet {
namespace {

namespace fs = std::filesystem;
using test::read_whole_file;
using test::TemporaryFolder;
using testing::ElementsAre;
using testing::HasSubstr;

class OutputFileTest : public testing::Test {
 protected:
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(folder.path()))
      found.push_back(entry.path().filename().string());
    std::sort(found.begin(), found.end());
    return found;
  }
  template <typename Work>
  static std::string message(Work work) {
    try {
      work();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
  TemporaryFolder folder;
};

TEST_F(OutputFileTest, AppearsOnlyWhenCommitted) {
  const std::string path = folder.write("a", "old");
  ASSERT_EQ(chmod(path.c_str(), 0640), 0);
  std::string seen;
  {
    OutputFile file(path);
    file.set_observer([&](const void* data, int64_t bytes) {
      seen.append(static_cast<const char*>(data), static_cast<size_t>(bytes));
    });
    file.write("new ");
    EXPECT_EQ(read_whole_file(path), "old");
    EXPECT_EQ(names().size(), 2u);
    file.write("text");
    EXPECT_EQ(file.bytes(), 8);
    file.commit();
  }
  EXPECT_EQ(seen, "new text");
  EXPECT_EQ(read_whole_file(path), "new text");
  struct stat info {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0640u);
  EXPECT_THAT(names(), ElementsAre("a"));
  { OutputFile(path).write("never"); }
  EXPECT_EQ(read_whole_file(path), "new text");
  EXPECT_THAT(names(), ElementsAre("a"));
}

TEST_F(OutputFileTest, FailureKeepsTheOldFileAndLeavesNoTemporary) {
  const std::string path = folder.write("a", "old");
  signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{1000, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string text = message([&] { write_output_file(path, std::string(5000, 'x')); });
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(text, path + ": cannot be written: File too large");
  EXPECT_EQ(read_whole_file(path), "old");
  EXPECT_THAT(names(), ElementsAre("a"));
}

TEST_F(OutputFileTest, PathsThatCannotBeWrittenAreNamed) {
  EXPECT_EQ(message([&] { check_output_path(folder.path()); }),
            folder.path() + ": is a folder; name a file");
  const std::string absent = folder.file("none/a"), below_file = folder.write("a", "") + "/b";
  EXPECT_EQ(message([&] { check_output_path(absent); }),
            absent + ": cannot be written: No such file or directory");
  EXPECT_EQ(message([&] { check_output_path(below_file); }),
            below_file + ": cannot be written: Not a directory");
  EXPECT_EQ(message([&] { check_output_path(folder.file("fine")); }), "no error");
  EXPECT_THAT(names(), ElementsAre("a"));
}

TEST_F(OutputFileTest, LinksStayLinksAndDevicesStayDevices) {
  const std::string target = folder.write("target", "old"), link = folder.file("link");
  fs::create_symlink("target", link);
  write_output_file(link, "new");
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_EQ(read_whole_file(target), "new");
  fs::create_symlink("later", folder.file("dangling"));
  write_output_file(folder.file("dangling"), "made");
  EXPECT_EQ(read_whole_file(folder.file("later")), "made");
  write_output_file("/dev/null", "gone");
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  EXPECT_THAT(message([] { write_output_file("/dev/full", "lost"); }),
              HasSubstr("/dev/full: cannot be written: No space left on device"));
}

TEST_F(OutputFileTest, OnlyTemporariesOfDeadProcessesAreRemoved) {
  folder.write("text.tmp123", "left by a killed process");
  folder.write("text.tmp123-4", "left by a killed process");
  folder.write("notes.tmp", "a user's");
  folder.write("notes.tmpl", "a user's");
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    OutputFile file(folder.file("alive"));
    file.write("half");
    if (write(ready[1], "x", 1) != 1) _exit(1);
    pause();
    _exit(0);
  }
  char byte;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  EXPECT_EQ(remove_stale_temporaries(folder.path()), 2);
  EXPECT_EQ(names().size(), 3u) << "the living process's stays";
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_EQ(remove_stale_temporaries(folder.path()), 1);
  EXPECT_THAT(names(), ElementsAre("notes.tmp", "notes.tmpl"));
  EXPECT_EQ(remove_stale_temporaries(folder.file("absent")), 0);
}

TEST_F(OutputFileTest, InputIsARegularFileOfConstantLength) {
  EXPECT_EQ(message([&] { InputFile file(folder.path()); }),
            folder.path() + ": is a folder, not a regular file");
  ASSERT_EQ(mkfifo(folder.file("pipe").c_str(), 0600), 0);
  EXPECT_EQ(message([&] { InputFile file(folder.file("pipe")); }),
            folder.file("pipe") + ": is a pipe, not a regular file");
  EXPECT_EQ(message([&] { InputFile file("/dev/zero"); }),
            "/dev/zero: is a device, not a regular file");
  EXPECT_EQ(message([&] { InputFile file(folder.file("absent")); }),
            folder.file("absent") + ": cannot be read: No such file or directory");
  const std::string path = folder.write("a", "0123456789");
  EXPECT_EQ(read_input_file(path, 10), "0123456789");
  EXPECT_EQ(message([&] { read_input_file(path, 9); }), path + ": holds 10 bytes; allowed are 9");
  const InputFile file(path);
  ASSERT_EQ(truncate(path.c_str(), 6), 0);
  char bytes[4];
  file.read(2, bytes, 4);
  EXPECT_EQ(std::string(bytes, 4), "2345");
  EXPECT_EQ(message([&] { file.read(3, bytes, 4); }),
            path + ": holds 6 bytes, it held 10 when it was opened; it was cut while in use");
}

}  // namespace
}  // namespace longnet
