// Threads of the ranks of a host against its cores, and the line that says so.
#include "train/rank_context.h"

#include <gtest/gtest.h>

namespace longnet::test {
namespace {

RankThreads rank(const std::string& host, int threads, std::vector<int> cores, int quota = 0) {
  return {host, threads, std::move(cores), quota};
}

TEST(RankContext, ThreadsThatHaveCoresOfTheirOwnDrawNoWord) {
  EXPECT_EQ(crowded_message({rank("a", 2, {0, 1})}), "");
  EXPECT_EQ(crowded_message({rank("a", 1, {0, 1}), rank("a", 1, {0, 1})}), "");
  EXPECT_EQ(crowded_message({rank("a", 1, {0}), rank("a", 1, {1})}), "");
  EXPECT_EQ(crowded_message({rank("a", 2, {0, 1}), rank("b", 2, {0, 1})}), "") << "two hosts";
  EXPECT_EQ(crowded_message({rank("a", 9, {})}), "") << "cores unknown";
}

TEST(RankContext, MoreThreadsThanCoresAreSaidWithTheRemedy) {
  EXPECT_EQ(crowded_message({rank("a", 8, {0, 1})}),
            "a: 1 rank with 8 threads in total may use only 2 cores: threads wait for each other "
            "and steps "
            "take longer; set parallel.threads=2 or OMP_NUM_THREADS=2");
  EXPECT_EQ(
      crowded_message(
          {rank("a", 1, {0, 1}), rank("b", 4, {0, 1, 2, 3}), rank("b", 4, {0, 1, 2, 3})}),
      "b: 2 ranks with 8 threads in total may use only 4 cores: threads wait for each other and "
      "steps take longer; set parallel.threads=2 or OMP_NUM_THREADS=2, or start fewer ranks "
      "there");
  EXPECT_EQ(crowded_message({rank("a", 1, {0}), rank("a", 1, {0})}),
            "a: 2 ranks with 2 threads in total may use only 1 core: threads wait for each other "
            "and steps "
            "take longer; start at most 1 rank there");
}

TEST(RankContext, QuotaAndBindingCount) {
  EXPECT_EQ(crowded_message({rank("a", 4, {0, 1, 2, 3}, 2)}),
            "a: 1 rank with 4 threads in total may use only 2 cores: threads wait for each other "
            "and steps "
            "take longer; set parallel.threads=2 or OMP_NUM_THREADS=2");
  EXPECT_EQ(
      crowded_message({rank("a", 2, {0}), rank("a", 1, {1, 2, 3})}),
      "a: the launcher binds a rank with 2 threads to fewer cores; start with --bind-to none, "
      "as scripts/mpirun_local.sh does, or with fewer threads (OMP_NUM_THREADS)");
}

}  // namespace
}  // namespace longnet::test
