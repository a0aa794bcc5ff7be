// Threads of this process: their number, the cores they may run on, and the team that a library
// gets for its parallel regions.
//
// OpenMP may give a region fewer threads than requested (OMP_DYNAMIC, OMP_THREAD_LIMIT, nested
// regions). Our kernels divide their work by the size of the actual team; a library may prepare
// work for one size and run it with another. LibraryTeam makes the two equal.
#pragma once

#include <string>
#include <vector>

namespace longnet {

/// Most threads of one process; above this number OpenMP's own tables no longer fit on its stack.
inline constexpr int kMostThreads = 4096;

/// Numbers of the cores that this process may run on, rising. Empty if the system does not say.
std::vector<int> allowed_cores();
/// CPU quota of the process's control group (cpu.max) in cores, rounded up; 0: no limit.
int core_quota();

/// Threads of a context that asks for `wanted` (0: OpenMP's default, limited by the quota if
/// OMP_NUM_THREADS is not set). Never more than OMP_THREAD_LIMIT. Throws Error above kMostThreads;
/// the message says where the number comes from.
int thread_count(int wanted);

/// Throws Error if `threads` threads cannot run at once in this process; the message gives the number
/// that can and the limits. Without it OpenMP's library ends the process with its own message. Starts
/// the threads briefly, unless as many were started before.
void check_threads_start(int threads);

/// While it exists, a parallel region that a library opens on this thread with the thread count
/// that OpenMP reports gets exactly that many threads: size(), the most that this thread can have
/// of `wanted`. Inside another parallel region that is one. The destructor restores the previous
/// settings.
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

/// The limits that a failed start of a thread may come from: "; ulimit -u allows 100 threads of this
/// user, ...". Empty if there is none.
std::string thread_limits_text();

}  // namespace longnet
