// Threads: their number by request and environment, its limit, and the team that libraries get.
#include "core/threads.h"

#include <gtest/gtest.h>
#include <omp.h>

#include "core/context.h"

namespace longnet {
namespace {

/// Threads of a region that asks for none in particular, as a library does.
int team_of_a_library() {
  int size = 0;
#pragma omp parallel
  {
#pragma omp master
    size = omp_get_num_threads();
  }
  return size;
}

TEST(Threads, MoreThanOpenMpCanStartAreRefused) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(100000);
  try {
    Context();
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(
        std::string(e.what()).rfind("OMP_NUM_THREADS: 100000 threads a rank, allowed are 1 to "
                                    "4096; unset it, or set it to one per core",
                                    0),
        0u)
        << e.what();
  }
  omp_set_num_threads(before);
  EXPECT_THROW(thread_count(kMostThreads + 1), Error);
  EXPECT_EQ(thread_count(kMostThreads), std::min(kMostThreads, omp_get_thread_limit()));
}

TEST(Threads, LibraryGetsTheTeamItSees) {
  const int before = omp_get_max_threads();
  omp_set_dynamic(1);
  {
    const LibraryTeam team(3);
    EXPECT_EQ(team.size(), std::min(3, omp_get_thread_limit()));
    EXPECT_EQ(omp_get_max_threads(), team.size());
    for (int i = 0; i < 10; ++i) EXPECT_EQ(team_of_a_library(), team.size());
  }
  EXPECT_EQ(omp_get_max_threads(), before);
  EXPECT_EQ(omp_get_dynamic(), 1);
  omp_set_dynamic(0);
#pragma omp parallel num_threads(2)
  {
    const LibraryTeam team(3);
#pragma omp critical
    EXPECT_EQ(team.size(), omp_in_parallel() ? 1 : std::min(3, omp_get_thread_limit()));
  }
}

TEST(Threads, CoresAreThoseOfTheProcess) {
  const std::vector<int> cores = allowed_cores();
  ASSERT_FALSE(cores.empty());
  EXPECT_EQ(static_cast<int>(cores.size()), omp_get_num_procs());
  EXPECT_GE(core_quota(), 0);
}

}  // namespace
}  // namespace longnet
