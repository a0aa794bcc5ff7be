// See waiting.h. Measured: bench/results/waiting.txt.
#include "cli/waiting.h"

#include <unistd.h>

#include <climits>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

namespace longnet {
namespace {

// Rounds that libgomp spins before it sleeps. Its own choice, 300,000, lasts milliseconds: on a
// busy machine a thread spins away the time in which another one, or another program, could work.
constexpr const char* kSpinCount = "2000";
constexpr const char* kBlockTime = "1";  // milliseconds; 200 by default
constexpr const char* kStartedAnew = "LONGNET_SPIN_BOUNDED";

/// The file that this code was loaded from; empty if it cannot be told.
std::string file_of_code() {
  std::ifstream maps("/proc/self/maps");  // "BEGIN-END rw-p OFFSET DEVICE INODE      FILE"
  const auto here = reinterpret_cast<uintptr_t>(&bound_spinning);
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin = 0, end = 0;
    char dash = 0;
    std::istringstream words(line);
    words >> std::hex >> begin >> dash >> end;
    if (here < begin || here >= end) continue;
    const size_t path = line.find('/');
    return path == std::string::npos ? "" : line.substr(path);
  }
  return "";
}

/// The program's own file. Empty if it is unknown, no longer exists, or is not what runs: a loader
/// (ld.so PROGRAM) or a tool may have started the program.
std::string own_file() {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  if (length <= 0) return "";
  const std::string file(path, static_cast<size_t>(length));
  return file == file_of_code() && access(file.c_str(), X_OK) == 0 ? file : "";
}

}  // namespace

void bound_spinning(char** argv) {
  for (const char* chosen : {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", kStartedAnew})
    if (std::getenv(chosen) != nullptr) return;
  const std::string file = own_file();
  if (file.empty()) return;
  setenv("GOMP_SPINCOUNT", kSpinCount, 1);         // GNU's OpenMP
  setenv("KMP_BLOCKTIME", kBlockTime, 1);          // LLVM's and Intel's
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);  // Open MPI's own waits: connecting, ending
  setenv(kStartedAnew, "1", 1);
  execv(file.c_str(), argv);
  unsetenv("GOMP_SPINCOUNT");  // the start failed: the program runs as it is
  unsetenv("KMP_BLOCKTIME");
  unsetenv(kStartedAnew);
}

}  // namespace longnet
