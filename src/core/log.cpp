// See log.h.
#include "core/log.h"

#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/appended_file.h"
#include "core/error.h"
#include "core/text.h"

namespace longnet {
namespace {

spdlog::level::level_enum level_of(const std::string& level) {
  if (level == "debug") return spdlog::level::debug;
  if (level == "info") return spdlog::level::info;
  if (level == "warn") return spdlog::level::warn;
  if (level == "error") return spdlog::level::err;
  throw Error("run.log_level: {} is not one of debug, info, warn, error", in_quotes(level));
}

/// Makes the file, and its folder, with the first line.
class FileSink : public spdlog::sinks::base_sink<std::mutex> {
 public:
  /// speaks: reports lost lines on standard error.
  FileSink(std::string path, bool held, bool speaks)
      : file_(std::move(path)), held_(held), speaks_(speaks) {}

  /// Throws Error if the file cannot be written; a held file is checked only if it exists.
  void check() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (held_ && !std::filesystem::exists(file_.path())) return;
    if (file_.open()) return;
    throw Error("{}: the log cannot be written: {}; set run.folder to a folder you may write",
                file_.path(), file_.cause());
  }

  void release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ = false;
    for (const std::string& line : waiting_) append(line);
    waiting_.clear();
  }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t formatted;
    formatter_->format(message, formatted);
    std::string line(formatted.data(), formatted.size());
    if (held_)
      waiting_.push_back(std::move(line));
    else
      append(line);
  }
  void flush_() override {}

 private:
  void append(const std::string& line) {
    const std::string note =
        file_.failed() == 0 ? ""
                            : fmt::format("({} lines before this one could not be written: {})\n",
                                          file_.failed(), file_.cause());
    const bool written = file_.append(note + line);
    if (file_.renewed() && speaks_) {
      fmt::print(stderr, "{} was deleted or moved away during the run; a new one has been begun\n",
                 file_.path());
      std::fflush(stderr);
    }
    if (written || file_.failed() > 1 || !speaks_) return;
    fmt::print(stderr, "{}: the log cannot be written: {}; training continues, lines are counted\n",
               file_.path(), file_.cause());
    std::fflush(stderr);
  }

  AppendedFile file_;
  bool held_, speaks_;
  std::vector<std::string> waiting_;
};

std::shared_ptr<FileSink> file_sink;
std::shared_ptr<spdlog::logger> file_logger;

std::shared_ptr<spdlog::logger> make_logger(const char* name, std::vector<spdlog::sink_ptr> sinks,
                                            int rank, spdlog::level::level_enum level) {
  auto logger = std::make_shared<spdlog::logger>(name, sinks.begin(), sinks.end());
  logger->set_pattern(fmt::format("%Y-%m-%d %H:%M:%S.%e [rank {}] [%l] %v", rank));
  logger->set_level(rank == 0 ? level : std::max(level, spdlog::level::warn));
  logger->flush_on(spdlog::level::info);  // a killed run keeps its last line
  return logger;
}

}  // namespace

void init_log(int rank, const std::string& folder, const std::string& level, LogStart start) {
  LN_CHECK(rank >= 0, "rank {}", rank);
  const spdlog::level::level_enum wanted = level_of(level);
  std::vector<spdlog::sink_ptr> sinks;
  if (rank == 0) sinks.push_back(std::make_shared<spdlog::sinks::stderr_sink_mt>());
  file_sink.reset();
  file_logger.reset();
  if (!folder.empty()) {
    const std::string name = rank == 0 ? "log.txt" : fmt::format("log.rank{}.txt", rank);
    const bool held = start == LogStart::kHeld;
    file_sink = std::make_shared<FileSink>(folder + "/" + name, held, rank == 0);
    if (rank == 0) file_sink->check();
    sinks.push_back(file_sink);
    file_logger = make_logger("longnet.file", {file_sink}, rank, wanted);
  }
  spdlog::set_default_logger(make_logger("longnet", std::move(sinks), rank, wanted));
}

void write_held_log() {
  if (!file_sink) return;
  file_sink->release();
}

bool log_is_set_up() { return spdlog::default_logger()->name() == "longnet"; }

void log_line(LogLevel level, fmt::string_view format, fmt::format_args values) {
  spdlog::logger& logger = *spdlog::default_logger_raw();
  const auto wanted = level == LogLevel::kInfo ? spdlog::level::info : spdlog::level::warn;
  if (logger.should_log(wanted)) logger.log(wanted, fmt::vformat(format, values));
}

void log_to_file(const std::string& text) {
  if (file_logger) file_logger->info("{}", text);
}

std::string utc_time_text() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const int64_t milliseconds = std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
  const std::time_t seconds = milliseconds / 1000;
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", parts.tm_year + 1900,
                     parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec,
                     milliseconds % 1000);
}

}  // namespace longnet
