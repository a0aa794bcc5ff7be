// Logging through spdlog: rank in every line, one rank on the console, every rank into a file.
#pragma once

#include <spdlog/spdlog.h>

#include <string>

namespace longnet {

/// Sets spdlog's default logger. Rank 0 writes to standard error (plain lines) and, if folder is not
/// empty, to FOLDER/log.txt; other ranks only to FOLDER/log.rankN.txt, warnings and above.
/// level: debug | info | warn | error. Lines read "2026-01-31 12:00:00.123 [rank 0] [info] ...".
void init_log(int rank, const std::string& folder, const std::string& level);

}  // namespace longnet
