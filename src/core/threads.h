// Threads of this process: how many there may be, which cores they run on, and the team that a
// library gets for its parallel regions.
//
// OpenMP may give a region fewer threads than it asks for: OMP_DYNAMIC, OMP_THREAD_LIMIT, a region
// inside another one. Our kernels divide their work by the team they find; a library may prepare
// its work for one count and do it with another. LibraryTeam keeps the two equal.
#pragma once

#include <vector>

namespace longnet {

/// Most threads of one process: beyond, OpenMP's own tables no longer fit on its stack.
inline constexpr int kMostThreads = 4096;

/// Numbers of the cores that this process may run on, rising. Empty where the system does not say.
std::vector<int> allowed_cores();
/// The cores' worth of time that the process' control group may use (cpu.max), rounded up; 0: as
/// much as there is.
int core_quota();

/// Threads of a context that asks for `wanted` (0: what OpenMP offers, but not more than the quota
/// where OMP_NUM_THREADS is not set). Never more than OMP_THREAD_LIMIT. Throws Error above
/// kMostThreads, naming where the number comes from.
int thread_count(int wanted);

/// While it lives, a parallel region that a library opens on this thread with the number of threads
/// OpenMP reports gets exactly that many: size(), the most this thread can have of `wanted`. Inside
/// another parallel region that is one. The settings before return with its end.
class LibraryTeam {
 public:
  explicit LibraryTeam(int wanted);
  ~LibraryTeam();
  LibraryTeam(const LibraryTeam&) = delete;
  LibraryTeam& operator=(const LibraryTeam&) = delete;
  int size() const { return size_; }

 private:
  int size_;
  int old_threads_;
  int old_dynamic_;
};

}  // namespace longnet
