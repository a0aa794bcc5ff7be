// See system.h.
#include "core/system.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "core/error.h"

namespace longnet {
namespace {

/// Field `place` of /proc/self/statm (proc(5): 0 address space, 1 resident), in bytes; 0: not
/// there.
int64_t memory_field(int place) {
  std::ifstream statm("/proc/self/statm");
  int64_t pages = 0;
  for (int i = 0; i <= place; ++i)
    if (!(statm >> pages)) return 0;
  return pages * sysconf(_SC_PAGESIZE);
}

}  // namespace

std::string system_cause() { return std::strerror(errno); }

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "unknown host";
}

int64_t resident_bytes() { return memory_field(1); }

int64_t address_space_bytes() { return memory_field(0); }

void require_limits(int64_t open_files, int64_t address_space, int64_t file_size) {
  const auto require = [](auto resource, int64_t least, const char* name, int64_t unit,
                          const char* what) {
    rlimit limit{};
    if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
        limit.rlim_cur >= static_cast<rlim_t>(least))
      return;
    throw Error("{} allows {} {}, the start of MPI needs {}; set it to {} or more", name,
                limit.rlim_cur, what, least, least / unit);
  };
  require(RLIMIT_NOFILE, open_files, "ulimit -n", 1, "open files");
  require(RLIMIT_AS, address_space, "ulimit -v", 1024, "bytes");
  // bash counts in 1024 bytes, other shells in 512.
  require(RLIMIT_FSIZE, file_size, "ulimit -f", 512, "bytes");
}

}  // namespace longnet
