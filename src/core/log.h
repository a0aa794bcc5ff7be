// Logging through spdlog: rank in every line, one rank on the console, every rank into a file.
//
// A log that cannot be written (a full disk, a lost server) ends nothing: rank 0's console says so
// once, lines are counted, and the file says how many it lacks as soon as it can be written again.
#pragma once

#include <spdlog/spdlog.h>

#include <string>

namespace longnet {

enum class LogStart {
  kNow,
  kHeld,  // lines stay in memory, and no file is made, until write_held_log()
};

/// Sets spdlog's default logger. Rank 0 writes to standard error (plain lines) and, if folder is
/// not empty, to FOLDER/log.txt; other ranks only to FOLDER/log.rankN.txt, warnings and above, and
/// the file is made with the first line. level: debug | info | warn | error. Lines read "2026-01-31
/// 12:00:00.123 [rank 0] [info] ...". Throws Error where rank 0's file cannot be written.
void init_log(int rank, const std::string& folder, const std::string& level,
              LogStart start = LogStart::kNow);
/// Ends LogStart::kHeld: what was said so far goes to the file, as will all that follows. Nothing
/// to do after LogStart::kNow.
void write_held_log();
/// A line of level info for the file alone: the console has shown the same in its own way.
void log_to_file(const std::string& text);

/// "2026-01-31T12:00:00.123Z", the time now.
std::string utc_time_text();

}  // namespace longnet
