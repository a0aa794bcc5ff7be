// The owner's sum of a ragged reduce-scatter against a loop in rank order, bit by bit: every rank
// of one to five, sizes with tails and more elements than threads, addresses without alignment.
#include <cstring>

#include "dist/communicator_nccl.h"
#include "simt/device_values.h"
#include "simt/support.h"

namespace longnet::simt_test {
namespace {

/// Elements that differ from the members' parts added in rank order, and those around that changed.
int64_t wrong(int rank, int size, int64_t n, int64_t offset) {
  std::vector<std::vector<float>> parts;
  for (int member = 0; member < size; ++member) parts.push_back(test::random_values(n, member + 1));
  std::vector<float> want(offset + n + 1, 3.0f), values = want, staging(offset);
  for (int64_t i = 0; i < n; ++i) {
    float sum = parts[0][i];
    for (int member = 1; member < size; ++member) sum += parts[member][i];
    want[offset + i] = sum;
    values[offset + i] = parts[rank][i];
  }
  for (int member = 0; member < size; ++member)
    if (member != rank) staging.insert(staging.end(), parts[member].begin(), parts[member].end());
  Context context = gpu_context();
  const DeviceValues d_values(DType::kF32, values), d_staging(DType::kF32, staging);
  internal::add_in_rank_order(context.stream(), static_cast<float*>(d_values.data()) + offset,
                              static_cast<const float*>(d_staging.data()) + offset, rank, size, n);
  context.wait();
  const std::vector<float> got = d_values.floats();
  int64_t count = 0;
  for (size_t i = 0; i < got.size(); ++i) count += std::memcmp(&got[i], &want[i], 4) != 0;
  return count;
}

TEST(RankOrderSumSimt, AddsInRankOrderBitByBit) {
  for (int size = 1; size <= 5; ++size)
    for (int rank = 0; rank < size; ++rank)
      for (const int64_t n : {0, 1, 3, 255, 257, 1000})
        for (const int64_t offset : {0, 1, 3})
          EXPECT_EQ(wrong(rank, size, n, offset), 0)
              << "rank " << rank << " of " << size << ", " << n << " from " << offset;
}

TEST(RankOrderSumSimt, EveryOrderOfThreadsGivesTheSame) {
  under_every_order(1, [](simt::Order) { EXPECT_EQ(wrong(1, 3, 700, 1), 0); });
}

TEST(RankOrderSumSimt, DefectsAreFound) {
  for (const int bug : {9001, 9002}) {
    const simt::Defect defect(bug);
    EXPECT_GT(wrong(0, 3, 1000, 0), 0) << bug;
  }
}

TEST(RankOrderSumSimt, ReadingPastTheOthersPartsIsFound) {
  if (!simt::address_checked()) GTEST_SKIP() << "only in the ASan build";
  EXPECT_DEATH(
      {
        const simt::Defect defect(9003);
        wrong(0, 3, 1000, 0);
      },
      "heap-buffer-overflow");
}

}  // namespace
}  // namespace longnet::simt_test
