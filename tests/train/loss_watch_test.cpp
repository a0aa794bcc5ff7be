// LossWatch: what is a spike and what is not, at the start, in noise, after a change of the data.
#include "train/loss_watch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace longnet::test {
namespace {

TEST(LossWatch, TheFirstStepsMayBeTwiceTheGuess) {
  LossWatch watch(256);  // ln 256 = 5.55
  EXPECT_FALSE(watch.median());
  EXPECT_FALSE(watch.add(5.7));
  EXPECT_FALSE(watch.add(10.9));
  EXPECT_TRUE(watch.add(882));
  EXPECT_TRUE(watch.add(882)) << "the median is still 10.9 or less";
}

TEST(LossWatch, FallingAndNoisyLossesAreNoSpikes) {
  LossWatch watch(256);
  for (int step = 0; step < 500; ++step) {
    const double noise = 0.4 * std::sin(12.9898 * step) + 0.3 * std::sin(78.233 * step);
    EXPECT_FALSE(watch.add(1.3 + 4.4 * std::exp(-step / 40.0) + noise)) << step;
  }
}

TEST(LossWatch, ASpikeStandsOutAndDoesNotHideTheNext) {
  LossWatch watch(256);
  for (int step = 0; step < 30; ++step) EXPECT_FALSE(watch.add(2.0 + 0.01 * (step % 3)));
  EXPECT_TRUE(watch.add(3.5));
  EXPECT_FALSE(watch.add(2.0));
  EXPECT_TRUE(watch.add(882));
  EXPECT_TRUE(watch.add(std::numeric_limits<double>::quiet_NaN()));
  EXPECT_FALSE(watch.add(2.9));
}

TEST(LossWatch, LossesNearZeroHaveRoom) {
  LossWatch watch(256);
  for (int step = 0; step < 30; ++step) watch.add(0.001);
  EXPECT_FALSE(watch.add(0.4));
  EXPECT_TRUE(watch.add(0.6));
}

TEST(LossWatch, ALastingChangeIsReportedForHalfAWindow) {
  LossWatch watch(256);
  for (int step = 0; step < 100; ++step) watch.add(1.0);
  int spikes = 0;
  for (int step = 0; step < 100; ++step) spikes += watch.add(4.0) ? 1 : 0;
  EXPECT_GE(spikes, 20);
  EXPECT_LE(spikes, 33);
}

}  // namespace
}  // namespace longnet::test
