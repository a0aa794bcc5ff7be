// GradientSum: exact sums on integers, for ready ranges and buckets of every kind.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "dist/mesh.h"

namespace longnet::test {
namespace {

float value_of(int rank, int64_t i) {
  return static_cast<float>((i * 31 + rank * 977 + i * rank) % 65521);
}
float sum_of(int ranks, int64_t i) {
  float sum = 0;
  for (int rank = 0; rank < ranks; ++rank) sum += value_of(rank, i);
  return sum;
}

TEST(GradientSum, RandomRangesAndBuckets) {
  const auto world = make_mpi_communicator();
  const int size = world->size(), rank = world->rank();
  std::mt19937_64 random(5);  // the same on every rank
  for (int64_t bucket : {12, 100, 1000, 16 << 20}) {
    const int64_t n = 600;
    std::vector<float> gradients(n);
    GradientSum sum(*world, TensorView(gradients.data(), DType::kF32, {n}), bucket);
    for (int step = 0; step < 2; ++step) {
      std::vector<bool> reported(n, false);
      for (int64_t i = 0; i < n; ++i) gradients[i] = -1.0f;
      for (int64_t begin = 0; begin < n;) {
        const int64_t end = std::min<int64_t>(n, begin + static_cast<int64_t>(random() % 100));
        // Written only now, as a backward does; after ready() the range belongs to the sum.
        for (int64_t i = begin; i < end; ++i) gradients[i] = value_of(rank, i);
        if (random() % 8 != 0) {  // sometimes a range is left out: a hole in the buffer
          sum.ready(begin, end);
          std::fill(reported.begin() + begin, reported.begin() + end, true);
        }
        sum.progress();
        begin = std::max(end, begin + static_cast<int64_t>(random() % 2));
      }
      sum.wait();
      int64_t wrong = 0;
      for (int64_t i = 0; i < n; ++i)
        if (reported[i]) {
          wrong += gradients[i] != sum_of(size, i);
        } else {
          wrong += gradients[i] != value_of(rank, i) && gradients[i] != -1.0f;
        }
      EXPECT_EQ(wrong, 0) << "bucket of " << bucket << " bytes, step " << step;
    }
  }
}

TEST(GradientSum, BucketsDoNotChangeTheBits) {
  const auto world = make_mpi_communicator();
  std::mt19937_64 random(50 + world->rank());
  std::normal_distribution<float> normal;
  const int64_t n = 5001;
  std::vector<float> mine(n), first;
  for (float& v : mine) v = normal(random);
  for (int64_t bucket : {64, 4096, 1 << 20}) {
    std::vector<float> gradients = mine;
    GradientSum sum(*world, TensorView(gradients.data(), DType::kF32, {n}), bucket);
    sum.ready(0, 1234);
    sum.ready(1234, n);
    sum.wait();
    if (first.empty()) first = gradients;
    EXPECT_EQ(std::memcmp(first.data(), gradients.data(), 4 * n), 0) << bucket;
  }
}

TEST(GradientSum, BytesAndStaging) {
  const auto world = make_mpi_communicator();
  const int64_t size = world->size(), n = 800 * size;
  std::vector<float> gradients(n, 1.0f);
  GradientSum sum(*world, TensorView(gradients.data(), DType::kF32, {n}), 4 * 80 * size);
  sum.ready(0, n);
  sum.wait();
  EXPECT_EQ(sum.bytes_sent(), 2 * (size - 1) * (n / size) * 4);
  EXPECT_EQ(sum.staging_bytes(), 4 * (size - 1) * 80 * 4);
  EXPECT_EQ(std::count(gradients.begin(), gradients.end(), static_cast<float>(size)), n);

  const auto counting = make_counting_communicator(world->size(), world->rank());
  GradientSum planned(*counting,
                      TensorView(reinterpret_cast<void*>(uintptr_t{256}), DType::kF32, {n}),
                      4 * 80 * size);
  planned.ready(0, n / 2);
  planned.progress();
  planned.ready(n / 2, n);
  planned.wait();
  EXPECT_EQ(planned.bytes_sent(), sum.bytes_sent());
  EXPECT_EQ(planned.staging_bytes(), sum.staging_bytes());
}

TEST(GradientSum, NothingBeforeItIsReadyAndRangesAreChecked) {
  const auto world = make_mpi_communicator();
  std::vector<float> gradients(100, 1.0f);
  GradientSum sum(*world, TensorView(gradients.data(), DType::kF32, {100}));
  sum.wait();
  EXPECT_EQ(std::count(gradients.begin(), gradients.end(), 1.0f), 100);
  sum.ready(10, 20);
  sum.wait();
  sum.wait();  // not summed twice
  EXPECT_EQ(gradients[9], 1.0f);
  EXPECT_EQ(gradients[10], static_cast<float>(world->size()));
  EXPECT_EQ(gradients[19], static_cast<float>(world->size()));
  EXPECT_EQ(gradients[20], 1.0f);
  EXPECT_THROW(sum.ready(90, 101), Error);
  EXPECT_THROW(sum.ready(20, 10), Error);
  EXPECT_THROW(GradientSum(*world, TensorView(gradients.data(), DType::kBF16, {100})), Error);
}

}  // namespace
}  // namespace longnet::test
