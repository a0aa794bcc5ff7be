// See threads.h.
#include "core/threads.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <string>

#include "core/error.h"

namespace longnet {
namespace {

/// Threads that a region asking for `wanted` gets on this thread. Measured once for every number:
/// the answer depends on limits that hold for the whole life of the process.
int largest_team(int wanted) {
  static thread_local int asked = 0, got = 0;
  if (wanted == asked) return got;
  int size = 1;
#pragma omp parallel num_threads(wanted)
  {
#pragma omp master
    size = omp_get_num_threads();
  }
  asked = wanted;
  got = size;
  return size;
}

void* wait_for(void* mutex) {
  const std::lock_guard<std::mutex> wait(*static_cast<std::mutex*>(mutex));
  return nullptr;
}

}  // namespace

std::vector<int> allowed_cores() {
  std::vector<int> cores;
  for (int most = 1024; most <= 1 << 20; most *= 2) {  // the kernel's mask may be larger than ours
    cpu_set_t* set = CPU_ALLOC(most);
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(most);
    const bool known = sched_getaffinity(0, bytes, set) == 0;
    for (int core = 0; known && core < most; ++core)
      if (CPU_ISSET_S(core, bytes, set)) cores.push_back(core);
    CPU_FREE(set);
    if (known) break;
  }
  return cores;
}

std::string thread_limits_text() {
  std::string text;
  rlimit limit{};
  if (getrlimit(RLIMIT_NPROC, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
    text += fmt::format("; ulimit -u allows {} threads of this user", limit.rlim_cur);
  for (const char* path : {"/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"}) {
    std::ifstream file(path);
    if (int64_t most = 0; file >> most)
      text += fmt::format("; {} allows {} in the control group", path, most);
  }
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
    text += fmt::format("; ulimit -v allows {} bytes, stacks of threads included", limit.rlim_cur);
  return text;
}

int core_quota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");  // "QUOTA PERIOD" in microseconds, or "max PERIOD"
  double quota = 0, period = 0;
  if (!(file >> quota >> period) || quota <= 0 || period <= 0) return 0;
  return static_cast<int>(std::clamp(std::ceil(quota / period), 1.0, 1e6));
}

int thread_count(int wanted) {
  const bool asked = wanted > 0;
  int threads = asked ? wanted : omp_get_max_threads();
  if (threads > kMostThreads)
    throw Error("{}: {} threads a rank, allowed are 1 to {}; {} to one per core ({} here)",
                asked ? "threads" : "OMP_NUM_THREADS", threads, kMostThreads,
                asked ? "set them" : "unset it, or set it", allowed_cores().size());
  if (!asked && std::getenv("OMP_NUM_THREADS") == nullptr)
    if (const int quota = core_quota(); quota > 0) threads = std::min(threads, quota);
  return std::max(1, std::min(threads, omp_get_thread_limit()));
}

void check_threads_start(int threads) {
  static int known = 1;
  if (threads <= known) return;
  std::vector<pthread_t> started;
  std::mutex end;
  end.lock();  // they wait for it, so that all are there at once
  int failure = 0;
  while (failure == 0 && static_cast<int>(started.size()) < threads - 1) {
    pthread_t thread;
    failure = pthread_create(&thread, nullptr, wait_for, &end);
    if (failure == 0) started.push_back(thread);
  }
  end.unlock();
  for (const pthread_t thread : started) pthread_join(thread, nullptr);
  if (failure != 0)
    throw Error(
        "{} threads are wanted, {} can be started ({}){}; set parallel.threads=1 (or what is left "
        "for each rank of this machine; for attend and generate, OMP_NUM_THREADS), or raise the "
        "limit",
        threads, started.size() + 1, std::strerror(failure), thread_limits_text());
  known = threads;
}

LibraryTeam::LibraryTeam(int wanted)
    : size_(1), old_threads_(omp_get_max_threads()), old_dynamic_(omp_get_dynamic()) {
  if (old_dynamic_) omp_set_dynamic(0);
  if (!omp_in_parallel() && omp_get_max_active_levels() > 0)
    size_ = largest_team(std::max(1, wanted));
  if (size_ != old_threads_) omp_set_num_threads(size_);
}

LibraryTeam::~LibraryTeam() {
  if (size_ != old_threads_) omp_set_num_threads(old_threads_);
  if (old_dynamic_) omp_set_dynamic(1);
}

}  // namespace longnet
