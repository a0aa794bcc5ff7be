// The nccl transport's decisions, without a GPU: plans of all ranks fit together and move every
// element to its place; time limits name the right operation.
#include "dist/transfer_plan.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "dist/communicator_nccl.h"
#include "dist/host_wait.h"

namespace longnet::test {
namespace {

using internal::Transfer;
using internal::TransferPlan;
using internal::Watchdog;

TEST(TransferPlan, EqualOrRagged) {
  const auto equal = [](std::vector<int64_t> begin) { return internal::chunks_are_equal(begin); };
  EXPECT_TRUE(equal({0, 5}));
  EXPECT_TRUE(equal({3, 8, 13, 18}));
  EXPECT_TRUE(equal({7, 7, 7}));  // nothing at all
  EXPECT_FALSE(equal({0, 5, 9}));
  EXPECT_FALSE(equal({0, 5, 10, 10}));
  EXPECT_FALSE(equal({0, 0, 5}));
}

std::vector<int64_t> random_chunks(int size, std::mt19937_64& random) {
  std::vector<int64_t> begin{static_cast<int64_t>(random() % 4)};
  for (int m = 0; m < size; ++m)
    begin.push_back(begin.back() + (random() % 3 == 0 ? 0 : static_cast<int64_t>(random() % 6)));
  return begin;
}

/// Runs all ranks' plans: the k-th send from one rank to another meets the k-th receive, as in
/// NCCL. move(from, send, to, receive) is called for each pair; none may be left over.
template <typename Move>
void run_plans(const std::vector<TransferPlan>& plans, const Move& move) {
  std::map<std::pair<int, int>, std::vector<Transfer>> sends;
  for (int rank = 0; rank < static_cast<int>(plans.size()); ++rank)
    for (const Transfer& t : plans[rank].sends) sends[{rank, t.peer}].push_back(t);
  for (int rank = 0; rank < static_cast<int>(plans.size()); ++rank)
    for (const Transfer& t : plans[rank].receives) {
      auto& queue = sends[{t.peer, rank}];
      ASSERT_FALSE(queue.empty()) << "rank " << rank << " waits for " << t.peer << " for ever";
      ASSERT_EQ(queue.front().count, t.count);
      move(t.peer, queue.front(), rank, t);
      queue.erase(queue.begin());
    }
  for (const auto& [pair, queue] : sends)
    EXPECT_TRUE(queue.empty()) << pair.first << " sends to " << pair.second << " in vain";
}

TEST(TransferPlan, GatherBringsEveryChunkToEveryRank) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 50; ++round) {
    const int size = 1 + round % 6;
    const std::vector<int64_t> begin = random_chunks(size, random);
    std::vector<std::vector<int>> buffers(size, std::vector<int>(begin.back() + 2, -1));
    std::vector<TransferPlan> plans;
    for (int rank = 0; rank < size; ++rank) {
      for (int64_t i = begin[rank]; i < begin[rank + 1]; ++i)
        buffers[rank][i] = 100 * rank + static_cast<int>(i);
      plans.push_back(internal::gather_plan(begin, rank));
    }
    run_plans(plans, [&](int from, const Transfer& send, int to, const Transfer& receive) {
      EXPECT_GT(send.count, 0);
      for (int64_t i = 0; i < send.count; ++i)
        buffers[to][receive.begin + i] = buffers[from][send.begin + i];
    });
    for (int member = 0; member < size; ++member)
      for (int64_t i = begin[member]; i < begin[member + 1]; ++i)
        for (int rank = 0; rank < size; ++rank)
          ASSERT_EQ(buffers[rank][i], 100 * member + i) << "rank " << rank << " of " << size;
    for (int rank = 0; rank < size; ++rank) {
      ASSERT_EQ(buffers[rank][begin.back()], -1);
      if (begin[0] > 0) {
        ASSERT_EQ(buffers[rank][0], -1);
      }
    }
  }
}

TEST(TransferPlan, ScatterStagesTheOthersPartsInRankOrder) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 50; ++round) {
    const int size = 1 + round % 6;
    const std::vector<int64_t> begin = random_chunks(size, random);
    std::vector<std::vector<int>> staging(size);
    std::vector<TransferPlan> plans;
    for (int rank = 0; rank < size; ++rank) {
      staging[rank].assign((size - 1) * (begin[rank + 1] - begin[rank]), -1);
      plans.push_back(internal::scatter_plan(begin, rank));
    }
    run_plans(plans, [&](int from, const Transfer& send, int to, const Transfer& receive) {
      for (int64_t i = 0; i < send.count; ++i)
        staging[to].at(receive.begin + i) = 100 * from + static_cast<int>(send.begin + i);
    });
    for (int rank = 0; rank < size; ++rank) {
      std::vector<int> expected;
      for (int member = 0; member < size; ++member)
        for (int64_t i = begin[rank]; member != rank && i < begin[rank + 1]; ++i)
          expected.push_back(100 * member + static_cast<int>(i));
      ASSERT_EQ(staging[rank], expected) << "rank " << rank << " of " << size;
    }
  }
}

TEST(Watchdog, NamesTheOldestThatIsOverdue) {
  Watchdog dog(10);
  EXPECT_FALSE(dog.overdue(1e9));
  dog.started(1, "all-gather", 100);
  dog.started(2, "reduce-scatter", 105);
  EXPECT_FALSE(dog.overdue(110));
  ASSERT_TRUE(dog.overdue(111));
  EXPECT_EQ(dog.overdue(111)->name, "all-gather");
  EXPECT_EQ(dog.overdue(111)->seconds, 11);
  dog.finished(1);
  EXPECT_FALSE(dog.overdue(111));
  EXPECT_EQ(dog.overdue(116)->name, "reduce-scatter");
  dog.finished(2);
  EXPECT_FALSE(dog.overdue(1e9));
}

TEST(Watchdog, ZeroIsNever) {
  Watchdog dog(0);
  dog.started(1, "all-gather", 0);
  EXPECT_FALSE(dog.overdue(1e12));
}

TEST(Watchdog, MessageNamesRankHostOperationAndKey) {
  const std::string message = internal::overdue_message({"all-reduce", 601.4}, "rank 3 on n1", 8);
  EXPECT_EQ(message.rfind("rank 3 on n1: all-reduce in a group of 8 ranks has not finished after "
                          "601 s (parallel.timeout_s): another rank of the group is lost",
                          0),
            0u)
      << message;
  EXPECT_NE(internal::overdue_message({"barrier", 2}, "rank 0 on a", 2, "rank 1 on b")
                .find("(parallel.timeout_s): rank 1 on b is lost, stopped or busy"),
            std::string::npos);
}

TEST(Patience, FirstWordAfterTenSecondsOfRunningLaterWhereOthersMaySpeak) {
  internal::Patience patience(100);
  double seconds = 0;
  for (double now = 101; now < 109; ++now) seconds = patience.seconds(now);
  EXPECT_EQ(seconds, 8);
  EXPECT_FALSE(patience.word_due(seconds, 0, 0));
  seconds = patience.seconds(1000);  // nobody asked: this process was stopped
  EXPECT_EQ(seconds, 8);
  for (double now = 1001; now < 1004; ++now) seconds = patience.seconds(now);
  EXPECT_EQ(seconds, 11);
  EXPECT_TRUE(patience.word_due(seconds, 0, 0));
  EXPECT_FALSE(patience.word_due(seconds, 1, 0));
  EXPECT_TRUE(patience.word_due(40, 1, 0));
  EXPECT_FALSE(patience.word_due(1e6, 999, 0));
  EXPECT_TRUE(patience.word_due(11, 0, 10));
  EXPECT_FALSE(patience.word_due(11, 0, 11));
  patience.said();
  EXPECT_FALSE(patience.word_due(seconds, 0, 0));
}

TEST(Patience, LimitEndsTheFirstSpeakerFirst) {
  EXPECT_FALSE(internal::Patience::over(1e9, 0, 0));  // never
  EXPECT_FALSE(internal::Patience::over(600, 600, 0));
  EXPECT_TRUE(internal::Patience::over(600.1, 600, 0));
  EXPECT_FALSE(internal::Patience::over(600.1, 600, 5));
  EXPECT_TRUE(internal::Patience::over(604, 600, 5));
}

TEST(Patience, AFewRanksAreNamed) {
  EXPECT_EQ(internal::rank_names({}), "another rank of the group");
  EXPECT_EQ(internal::rank_names({1000, 1001, 1002, 1003, 1004, 1005}),
            "rank 1000, rank 1001, rank 1002, rank 1003 and 2 more");
}

TEST(NcclCommunicator, WithoutAGpuSaysSo) {
  if (!device_runtime::availability().devices.empty()) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_THROW(make_nccl_communicator(make_single_communicator(), {}), Error);
}

}  // namespace
}  // namespace longnet::test
