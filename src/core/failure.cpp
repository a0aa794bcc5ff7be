// See failure.h.
#include "core/failure.h"

#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <new>
#include <stdexcept>
#include <system_error>

#include "core/arena.h"
#include "core/error.h"
#include "core/system.h"
#include "core/threads.h"

namespace longnet {
namespace {

thread_local int64_t failed_bytes = 0;

/// The number behind a name in /proc/meminfo, in bytes; 0: not there.
int64_t machine_memory(const std::string& name) {
  std::ifstream info("/proc/meminfo");
  std::string word;
  int64_t kib = 0;
  while (info >> word)
    if (word == name + ":" && info >> kib) return kib * 1024;
  return 0;
}

std::string out_of_memory_text() {
  const std::string wanted =
      failed_bytes > 0 ? fmt::format("{} bytes wanted; ", failed_bytes) : std::string();
  return fmt::format(
      "out of memory: {}held: {}{}; use more ranks, a shorter train.sequence_length or a smaller "
      "train.batch_size",
      wanted, arena_table(), memory_limit_text());
}

}  // namespace

void note_failed_allocation(int64_t bytes) noexcept { failed_bytes = bytes; }

std::string memory_limit_text() {
  for (const auto& [resource, name] :
       {std::pair{RLIMIT_AS, "ulimit -v"}, std::pair{RLIMIT_DATA, "ulimit -d"}}) {
    rlimit limit{};
    if (getrlimit(resource, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
      return fmt::format("; {} allows {} bytes, {} are in use; raise it", name, limit.rlim_cur,
                         address_space_bytes());
  }
  const int64_t total = machine_memory("MemTotal");
  if (total == 0) return "";
  return fmt::format("; the machine has {} bytes, {} are free", total,
                     machine_memory("MemAvailable"));
}

std::string failure_text(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return out_of_memory_text();
  if (dynamic_cast<const std::length_error*>(&error) != nullptr)
    return fmt::format("a size is beyond what this machine can address ({})", error.what());
  if (const auto* file = dynamic_cast<const std::filesystem::filesystem_error*>(&error))
    return fmt::format("{}: {}", file->path1().empty() ? "a file" : file->path1().string(),
                       file->code().message());
  if (const auto* system = dynamic_cast<const std::system_error*>(&error)) {
    if (system->code() == std::errc::resource_unavailable_try_again)  // std::thread's
      return fmt::format("a thread cannot be started ({}){}; raise the limit",
                         system->code().message(), thread_limits_text());
    return fmt::format("{} (the operating system says so)", system->code().message());
  }
  const std::string text = error.what();
  return text.empty() ? "unknown error" : text;
}

}  // namespace longnet
