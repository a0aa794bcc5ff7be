// Logging through spdlog: the rank in every line, one rank on the console, every rank to a file.
//
// A log that cannot be written (a full disk, a lost server) ends nothing: rank 0 says so once on
// the console, the lines are counted, and the file states how many are missing as soon as it can be
// written again.
#pragma once

#include <fmt/core.h>

#include <string>

namespace longnet {

enum class LogStart {
  kNow,
  kHeld,  // lines stay in memory, and no file is made, until write_held_log()
};

/// Sets spdlog's default logger. Rank 0 writes plain lines to standard error and, if folder is not
/// empty, to FOLDER/log.txt. Other ranks write only warnings and errors, to FOLDER/log.rankN.txt,
/// which is created with the first line. level: debug | info | warn | error. A line in a file reads
/// "2026-01-31 12:00:00.123 [rank 0] [info] ...". Throws Error if rank 0's file cannot be written.
void init_log(int rank, const std::string& folder, const std::string& level,
              LogStart start = LogStart::kNow);
/// Ends LogStart::kHeld: writes the lines held so far to the file; later lines follow directly. Has
/// no effect after LogStart::kNow.
void write_held_log();
/// True from the first init_log() on.
bool log_is_set_up();
enum class LogLevel { kInfo, kWarn };
/// A line of spdlog's default logger; log_info() and log_warn() below are how to call it.
void log_line(LogLevel level, fmt::string_view format, fmt::format_args values);
/// log_info("step {} of {}", 3, 7). spdlog's own header and templates stay in log.cpp: they take a
/// compiler four times as long as these.
template <typename... Values>
void log_info(fmt::format_string<Values...> format, Values&&... values) {
  log_line(LogLevel::kInfo, format, fmt::make_format_args(values...));
}
template <typename... Values>
void log_warn(fmt::format_string<Values...> format, Values&&... values) {
  log_line(LogLevel::kWarn, format, fmt::make_format_args(values...));
}
/// Writes a line of level info to the file only; the console shows the same content in another
/// form.
void log_to_file(const std::string& text);

/// The current time as "2026-01-31T12:00:00.123Z".
std::string utc_time_text();

}  // namespace longnet
