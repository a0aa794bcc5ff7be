// MetricsLog: the display on a terminal stays on one line of any width, the JSON lines hold every
// figure, and those of steps that a resumed run repeats are dropped. What the figures are: trainer.
#include "train/metrics.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>

#include "core/error.h"
#include "core/log.h"
#include "support/temporary_folder.h"

namespace longnet::test {
namespace {

/// Standard error goes to a terminal of so many columns while this lives.
class Terminal {
 public:
  explicit Terminal(unsigned short columns) : ours_(posix_openpt(O_RDWR | O_NOCTTY)) {
    if (ours_ < 0 || grantpt(ours_) != 0 || unlockpt(ours_) != 0) return;
    const int theirs = open(ptsname(ours_), O_RDWR | O_NOCTTY);
    struct winsize size {};
    size.ws_col = columns;
    size.ws_row = 24;
    ready_ = theirs >= 0 && ioctl(theirs, TIOCSWINSZ, &size) == 0;
    saved_ = dup(STDERR_FILENO);
    if (ready_) dup2(theirs, STDERR_FILENO);
    close(theirs);
  }
  ~Terminal() {
    restore();
    close(ours_);
  }
  bool ready() const { return ready_; }
  /// What was shown; standard error is the old one again.
  std::string finish() {
    std::string text;
    fcntl(ours_, F_SETFL, O_NONBLOCK);
    char block[4096];
    for (ssize_t n; (n = read(ours_, block, sizeof block)) > 0;) text.append(block, n);
    restore();
    return text;
  }

 private:
  void restore() {
    if (saved_ < 0) return;
    dup2(saved_, STDERR_FILENO);
    close(saved_);
    saved_ = -1;
  }
  int ours_, saved_ = -1;
  bool ready_ = false;
};

StepMetrics metrics_of(int64_t step) {
  StepMetrics m;
  m.step = step;
  m.steps = 4000;
  m.loss = 2.34567;
  m.bits_per_byte = 3.384;
  m.gradient_norm = 1.25;
  m.learning_rate = 0.000123;
  m.seconds = 1.5;
  m.tokens_per_second = 54321;
  m.share_of_peak = 0.256;
  m.exchanged_bytes = 123456789;
  m.needed_bytes = 23456789;
  m.gradient_bytes = 987654;
  m.parameter_bytes = 876543;
  m.memory_bytes = 4567890123;
  return m;
}

TEST(Metrics, TheDisplayFitsTheTerminal) {
  for (const unsigned short columns : {30, 80, 119, 120, 250}) {
    TemporaryFolder folder;
    RunConfig run;
    run.folder = folder.path();
    run.progress = "auto";
    Terminal terminal(columns);
    if (!terminal.ready()) GTEST_SKIP() << "no pseudo-terminals here";
    {
      MetricsLog log(run, {});
      log.step(metrics_of(1999));
      log.step(metrics_of(2000));
    }
    const std::string shown = terminal.finish();
    std::vector<std::string> rows;
    std::istringstream stream(shown.substr(0, shown.find_last_not_of("\r\n") + 1));
    for (std::string row; std::getline(stream, row, '\r');)
      if (!row.empty()) rows.push_back(row);
    ASSERT_EQ(rows.size(), 2u) << shown;
    for (const std::string& row : rows) {
      ASSERT_EQ(row.rfind("\x1b[K", 0), 0u) << row;
      EXPECT_LT(row.size() - 3, columns) << row;
      EXPECT_NE(row.find(columns < 120 ? "[===   ] step " : "[==========          ] step "),
                row.find(columns < 120 ? "[==    ] step " : "[=========           ] step "))
          << row;
      EXPECT_EQ(row.find("loss 2.3457 nats") != std::string::npos, columns >= 80) << row;
      EXPECT_EQ(row.find("54321 tokens/s") != std::string::npos, columns >= 80) << row;
      EXPECT_EQ(row.find("memory 4.57 GB") != std::string::npos, columns == 250) << row;
    }
    EXPECT_NE(rows[1].find("] step 2000/4000"), std::string::npos) << rows[1];
  }
}

TEST(Metrics, JsonLinesHoldEveryFigure) {
  TemporaryFolder folder;
  RunConfig run;
  run.folder = folder.path();
  run.progress = "off";
  run.log_every = 1000000;
  const StepMetrics m = metrics_of(7);
  {
    MetricsLog log(run, {});
    log.step(m);
    StepMetrics tokens = metrics_of(8);
    tokens.bits_per_byte = -1;  // bytes per token are unknown
    log.step(tokens);
    log.evaluation(8, "validation", 2.5, 3.6, 4096);
    log.sample(8, "a \"quoted\"\n\xff line");
  }
  std::istringstream lines(read_whole_file(folder.file("metrics.jsonl")));
  std::vector<nlohmann::json> rows;
  for (std::string line; std::getline(lines, line);) rows.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(rows.size(), 4u);
  for (nlohmann::json& row : rows) {
    const std::string time = row.at("time");
    EXPECT_TRUE(
        std::regex_match(time, std::regex("20\\d\\d-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{3}Z")))
        << time;
    row.erase("time");
  }
  EXPECT_EQ(rows[0], (nlohmann::json{{"step", 7},
                                     {"loss", m.loss},
                                     {"bits_per_byte", m.bits_per_byte},
                                     {"gradient_norm", m.gradient_norm},
                                     {"learning_rate", m.learning_rate},
                                     {"seconds", m.seconds},
                                     {"tokens_per_second", m.tokens_per_second},
                                     {"share_of_peak", m.share_of_peak},
                                     {"exchanged_bytes", m.exchanged_bytes},
                                     {"needed_bytes", m.needed_bytes},
                                     {"gradient_bytes", m.gradient_bytes},
                                     {"parameter_bytes", m.parameter_bytes},
                                     {"memory_bytes", m.memory_bytes}}));
  EXPECT_FALSE(rows[1].contains("bits_per_byte"));
  EXPECT_EQ(rows[2].at("evaluation"), "validation");
  EXPECT_EQ(rows[2].at("tokens"), 4096);
  EXPECT_EQ(rows[3].at("sample"), "a \"quoted\"\n\xef\xbf\xbd line");
}

TEST(Metrics, StepsThatAreRepeatedAndBrokenLinesAreDropped) {
  TemporaryFolder folder;
  RunConfig run;
  run.folder = folder.path();
  run.progress = "off";
  folder.write(
      "metrics.jsonl",
      "{\"step\":1,\"loss\":3}\n{\"step\":2,\"loss\":2}\n{\"step\":2,\"evaluation\":\"x\"}\n"
      "[]\n{\"step\":\"2\"}\n{\"loss\":1}\n{\"step\":3,\"loss\":1}\n{\"step\":4,\"lo");
  { MetricsLog log(run, {.step = 2}); }
  EXPECT_EQ(
      read_whole_file(folder.file("metrics.jsonl")),
      "{\"step\":1,\"loss\":3}\n{\"step\":2,\"loss\":2}\n{\"step\":2,\"evaluation\":\"x\"}\n");
}

TEST(Metrics, RollbacksThatWereNotSavedAreDropped) {
  const TemporaryFolder folder;
  RunConfig run;
  run.folder = folder.path();
  run.progress = "off";
  const std::string earlier = "{\"step\":2,\"spike\":\"rollback\",\"rollbacks\":1}\n";
  folder.write("metrics.jsonl", earlier + "{\"step\":2,\"spike\":\"rollback\",\"rollbacks\":2}\n");
  { MetricsLog log(run, {.step = 2, .rollbacks = 1}); }
  EXPECT_EQ(read_whole_file(folder.file("metrics.jsonl")), earlier);
}

TEST(Metrics, AStepWithoutItsEvaluationIsFound) {
  const TemporaryFolder folder;
  RunConfig run;
  run.folder = folder.path();
  EXPECT_FALSE(lacks_evaluation(run, 2)) << "no metrics, as in another folder";
  folder.write("metrics.jsonl",
               "{\"step\":1,\"gradient_norm\":3}\n{\"step\":1,\"evaluation\":\"x\"}\n"
               "{\"step\":2,\"gradient_norm\":3}\n{\"step\":2,\"sample\":\"x\"}\n");
  EXPECT_FALSE(lacks_evaluation(run, 1));
  EXPECT_TRUE(lacks_evaluation(run, 2));
  EXPECT_FALSE(lacks_evaluation(run, 3));
}

/// Puts back the logger that was there.
class LoggerGuard {
 public:
  ~LoggerGuard() { spdlog::set_default_logger(before_); }

 private:
  std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
};

TEST(Metrics, TheLogFileHasStepsAndSamplesAlsoWithTheDisplayOn) {
  const LoggerGuard guard;
  const TemporaryFolder folder;
  RunConfig run;
  run.folder = folder.path();
  run.progress = "on";
  testing::internal::CaptureStderr();
  init_log(0, run.folder, "info");
  {
    MetricsLog log(run, {});
    log.step(metrics_of(7));
    log.sample(7, "one\ntwo \"three\"\x1b[31m\xff");
  }
  const std::string console = testing::internal::GetCapturedStderr();
  EXPECT_EQ(console.find("[info] step 7/4000"), std::string::npos) << console;
  const std::string text = read_whole_file(folder.file("log.txt"));
  EXPECT_NE(text.find("[rank 0] [info] step 7/4000: loss 2.3457 nats"), std::string::npos) << text;
  EXPECT_NE(text.find("step 7: sample\n  | one\n  | two \"three\"\\x1b[31m\xef\xbf\xbd\n"),
            std::string::npos)
      << text;
}

TEST(Metrics, AHistoryThatCannotBeReadIsRefusedAndStays) {
  const TemporaryFolder folder;
  RunConfig run;
  run.folder = folder.path();
  std::filesystem::create_directory(folder.file("metrics.jsonl"));
  EXPECT_THROW(MetricsLog(run, {.step = 2}), Error);
  EXPECT_TRUE(std::filesystem::is_directory(folder.file("metrics.jsonl")));
  std::filesystem::remove(folder.file("metrics.jsonl"));
  ASSERT_EQ(mkfifo(folder.file("metrics.jsonl").c_str(), 0600), 0);
  EXPECT_THROW(MetricsLog(run, {.step = 2}), Error);
  EXPECT_TRUE(std::filesystem::is_fifo(folder.file("metrics.jsonl")));
}

/// No file grows beyond so many bytes while this lives: like a full disk.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) : handler_(signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &before_);
    signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int);
};

size_t count_of(const std::string& word, const std::string& text) {
  size_t count = 0;
  for (size_t at = 0; (at = text.find(word, at)) != std::string::npos; ++at) ++count;
  return count;
}

TEST(Metrics, AFullDiskIsWarnedOfOnceCountedAndEndsNothing) {
  const LoggerGuard guard;
  const TemporaryFolder folder;
  RunConfig run;
  run.folder = folder.path();
  run.progress = "off";
  // Both files are longer than what is captured of standard error, which the limit must not cut.
  const std::string padding(20000, 'x');
  folder.write("log.txt", padding + "\n");
  folder.write("metrics.jsonl", "{\"step\":0,\"padding\":\"" + padding + "\"}\n");
  testing::internal::CaptureStderr();
  init_log(0, run.folder, "info");
  {
    MetricsLog log(run, {});
    log.step(metrics_of(1));
    {
      const FullDisk full(20500);  // the second line is cut
      for (int64_t step = 2; step <= 5; ++step) log.step(metrics_of(step));
    }
    log.step(metrics_of(6));
  }
  const std::string console = testing::internal::GetCapturedStderr();
  EXPECT_EQ(count_of("metrics.jsonl: cannot be written: File too large", console), 1u) << console;
  EXPECT_EQ(count_of("log.txt: the log cannot be written: File too large", console), 1u) << console;
  EXPECT_EQ(count_of("metrics.jsonl can be written again; 4 lines are missing", console), 1u);
  EXPECT_EQ(count_of("step 5/4000", console), 1u) << "the console has every step";
  const std::string text = read_whole_file(folder.file("log.txt"));
  EXPECT_NE(text.find("lines before this one could not be written: File too large)\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("step 6/4000"), std::string::npos) << text;
  // Whole lines but for the cut one, which the next start drops.
  { MetricsLog log(run, {.step = 99}); }
  std::istringstream lines(read_whole_file(folder.file("metrics.jsonl")));
  std::vector<int64_t> steps;
  for (std::string line; std::getline(lines, line);)
    steps.push_back(nlohmann::json::parse(line).at("step"));
  EXPECT_EQ(steps, (std::vector<int64_t>{0, 1, 6}));
}

}  // namespace
}  // namespace longnet::test
