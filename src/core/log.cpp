#include "core/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <memory>
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

}  // namespace

void init_log(int rank, const std::string& folder, const std::string& level) {
  LN_CHECK(rank >= 0, "rank {}", rank);
  const spdlog::level::level_enum wanted = level_of(level);
  std::vector<spdlog::sink_ptr> sinks;
  if (rank == 0) sinks.push_back(std::make_shared<spdlog::sinks::stderr_sink_mt>());
  if (!folder.empty()) {
    const std::string path =
        rank == 0 ? folder + "/log.txt" : fmt::format("{}/log.rank{}.txt", folder, rank);
    try {
      sinks.push_back(std::make_shared<spdlog::sinks::basic_file_sink_mt>(path));  // appends
    } catch (const spdlog::spdlog_ex& e) {
      throw Error("{}: the log cannot be written ({}); set run.folder to a folder you may write",
                  path, one_line(e.what()));
    }
  }
  auto logger = std::make_shared<spdlog::logger>("longnet", sinks.begin(), sinks.end());
  logger->set_pattern(fmt::format("%Y-%m-%d %H:%M:%S.%e [rank {}] [%l] %v", rank));
  logger->set_level(rank == 0 ? wanted : std::max(wanted, spdlog::level::warn));
  logger->flush_on(spdlog::level::info);  // a killed run keeps its last line
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace longnet
