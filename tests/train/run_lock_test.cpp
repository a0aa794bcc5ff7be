// RunLock: one holder at a time, also of many that start at once; what dead processes, other
// machines and deleted folders leave behind. Two trainings of one folder:
// tests/cli/run_folder_test.cpp.
#include "train/run_lock.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <thread>
#include <vector>

#include "core/error.h"
#include "support/temporary_folder.h"

namespace longnet::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

std::string refusal(const std::string& folder) {
  try {
    const RunLock lock(folder);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

/// A lock file of a process on another machine, last touched so many seconds ago.
void write_foreign_lock(const TemporaryFolder& folder, int64_t seconds_ago) {
  const std::string path = folder.write(
      "run.lock",
      R"({"host":"far","pid":7,"process_start":"1","boot":"b","started":"s","token":"t"})");
  const timespec times[2] = {{time(nullptr) - seconds_ago, 0}, {time(nullptr) - seconds_ago, 0}};
  ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
}

TEST(RunLock, ASecondStartIsRefusedByNameAndTheFolderIsFreeAfterwards) {
  const TemporaryFolder folder;
  {
    const RunLock lock(folder.path());
    EXPECT_EQ(lock.state(), RunLock::State::kHeld);
    const std::string message = refusal(folder.path());
    EXPECT_NE(message.find("is in use by process " + std::to_string(getpid()) + " on "),
              std::string::npos)
        << message;
    EXPECT_EQ(lock.state(), RunLock::State::kHeld) << "the refused one changed it";
  }
  EXPECT_FALSE(fs::exists(folder.file("run.lock")));
  EXPECT_EQ(refusal(folder.path()), "");
}

TEST(RunLock, ExactlyOneOfManyThatStartAtTheSameMomentWins) {
  for (int round = 0; round < 10; ++round) {
    const TemporaryFolder folder;
    int gate[2];
    ASSERT_EQ(pipe(gate), 0);
    std::vector<pid_t> children;
    for (int i = 0; i < 6; ++i) {
      const pid_t child = fork();
      if (child == 0) {
        close(gate[1]);
        char byte;
        if (read(gate[0], &byte, 1) < 0) _exit(2);  // until the parent closes its end
        try {
          const RunLock lock(folder.file("a/run"));
          std::this_thread::sleep_for(300ms);
          _exit(lock.state() == RunLock::State::kHeld ? 0 : 2);
        } catch (const Error&) {
          _exit(1);
        }
      }
      children.push_back(child);
    }
    close(gate[0]);
    close(gate[1]);
    int results[3] = {};
    for (const pid_t child : children) {
      int status = 0;
      waitpid(child, &status, 0);
      ++results[WIFEXITED(status) ? std::min(WEXITSTATUS(status), 2) : 2];
    }
    EXPECT_EQ(results[0], 1);
    EXPECT_EQ(results[1], 5);
  }
}

TEST(RunLock, TheLockOfAKilledProcessIsTakenOver) {
  const TemporaryFolder folder;
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const RunLock lock(folder.path());
    if (write(ready[1], "x", 1) != 1) _exit(1);
    pause();
  }
  char byte;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  EXPECT_NE(refusal(folder.path()).find("process " + std::to_string(child)), std::string::npos);
  kill(child, SIGSTOP);  // lives, and says nothing
  EXPECT_NE(refusal(folder.path()), "");
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  ASSERT_TRUE(fs::exists(folder.file("run.lock")));
  EXPECT_EQ(refusal(folder.path()), "");
  close(ready[0]);
  close(ready[1]);
}

TEST(RunLock, AnotherMachinesLockIsStaleAfterAMinuteOfSilence) {
  const TemporaryFolder folder;
  write_foreign_lock(folder, 61);
  EXPECT_EQ(refusal(folder.path()), "");
  write_foreign_lock(folder, 58);  // two more seconds to watch
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(refusal(folder.path()), "");
  EXPECT_GE(std::chrono::steady_clock::now() - start, 1s);
}

TEST(RunLock, AnotherMachineThatTouchesItsLockKeepsIt) {
  const TemporaryFolder folder;
  write_foreign_lock(folder, 5);
  std::atomic<bool> end{false};
  std::thread holder([&] {
    std::this_thread::sleep_for(700ms);
    while (!end) {
      utimensat(AT_FDCWD, folder.file("run.lock").c_str(), nullptr, 0);
      std::this_thread::sleep_for(100ms);
    }
  });
  EXPECT_NE(refusal(folder.path()).find("is in use by process 7 on far since s;"),
            std::string::npos);
  end = true;
  holder.join();
  EXPECT_NE(read_whole_file(folder.file("run.lock")).find("\"far\""), std::string::npos);
}

TEST(RunLock, TheHolderSeesThatItsFolderIsGoneOrTaken) {
  const TemporaryFolder folder;
  const std::string run = folder.file("run");
  RunLock lock(run);
  fs::remove_all(run);
  EXPECT_EQ(lock.state(), RunLock::State::kGone);
  {
    const RunLock other(run);
    EXPECT_EQ(lock.state(), RunLock::State::kTaken);
    EXPECT_NE(lock.holder(), "");
  }
  EXPECT_EQ(lock.state(), RunLock::State::kGone);
}

TEST(RunLock, LeavesNoFolderThatItMadeAndNobodyUsed) {
  const TemporaryFolder folder;
  { const RunLock lock(folder.file("a/b/run")); }
  EXPECT_FALSE(fs::exists(folder.file("a")));
  fs::create_directory(folder.file("mine"));
  { const RunLock lock(folder.file("mine/run")); }
  EXPECT_TRUE(fs::exists(folder.file("mine")));
  EXPECT_FALSE(fs::exists(folder.file("mine/run")));
  {
    const RunLock lock(folder.file("used/run"));
    folder.write("used/run/log.txt", "x");
  }
  EXPECT_TRUE(fs::exists(folder.file("used/run/log.txt")));
}

TEST(RunLock, BadPlacesAreRefusedInOneLine) {
  const TemporaryFolder folder;
  const std::string file = folder.write("file", "x");
  EXPECT_NE(refusal(file + "/run").find("run.folder: " + file + "/run cannot be created: "),
            std::string::npos);
  fs::create_directories(folder.file("run/run.lock"));
  EXPECT_NE(refusal(folder.file("run")).find("run.lock"), std::string::npos);
  ASSERT_EQ(mkfifo(folder.file("run.lock").c_str(), 0600), 0);
  EXPECT_NE(refusal(folder.path()).find("not a regular file"), std::string::npos);
}

}  // namespace
}  // namespace longnet::test
