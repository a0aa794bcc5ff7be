#include "core/log.h"

#include <fcntl.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <memory>
#include <mutex>
#include <system_error>
#include <utility>
#include <vector>

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

/// Whole lines at the end of a file. Makes the file, and its folder, with the first line.
class FileSink : public spdlog::sinks::base_sink<std::mutex> {
 public:
  /// speaks: says on standard error when lines are lost.
  FileSink(std::string path, bool held, bool speaks)
      : path_(std::move(path)), held_(held), speaks_(speaks) {}
  ~FileSink() override { close_file(); }

  /// Throws Error if the file cannot be written; a held one only if it is there already.
  void check() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (held_ && access(path_.c_str(), F_OK) != 0) return;
    if (open_file()) return;
    throw Error("{}: the log cannot be written ({}); set run.folder to a folder you may write",
                path_, std::strerror(errno));
  }

  void release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!std::exchange(held_, false)) return;
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
        lost_ == 0 ? ""
                   : fmt::format("{}({} lines before this one could not be written: {})\n",
                                 torn_ ? "\n" : "", lost_, cause_);
    if (write_all(note + line)) {
      lost_ = 0;
      return;
    }
    cause_ = std::strerror(errno);
    if (++lost_ > 1 || !speaks_) return;
    fmt::print(stderr, "{}: the log cannot be written: {}; the run continues without it\n", path_,
               cause_);
    std::fflush(stderr);
  }

  /// False, with errno: not all of it is in the file.
  bool write_all(const std::string& text) {
    if (!open_file()) return false;
    size_t done = 0;
    while (done < text.size()) {
      const ssize_t written = write(file_, text.data() + done, text.size() - done);
      if (written > 0) {
        done += static_cast<size_t>(written);
        continue;
      }
      if (written < 0 && errno == EINTR) continue;
      if (written == 0) errno = EIO;
      torn_ = torn_ || done > 0;
      return false;
    }
    torn_ = false;
    return true;
  }

  bool open_file() {
    if (file_ >= 0) return true;
    std::error_code ignored;
    std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), ignored);
    // O_NONBLOCK: a FIFO in its place fails at once where nobody reads it.
    file_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
    return file_ >= 0;
  }

  void close_file() {
    if (file_ >= 0) close(std::exchange(file_, -1));
  }

  const std::string path_;
  bool held_, speaks_;
  bool torn_ = false;  // the file ends in a part of a line
  int file_ = -1;
  int64_t lost_ = 0;
  std::string cause_;
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
