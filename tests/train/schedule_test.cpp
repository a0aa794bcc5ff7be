// Learning rates at the borders and between, for every schedule.
#include "train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace longnet::test {
namespace {

OptimizerConfig config_of(const std::string& schedule) {
  OptimizerConfig config;
  config.learning_rate = 2.0;
  config.warmup_steps = 10;
  config.final_ratio = 0.1;
  config.power = 2.0;
  config.schedule = schedule;
  return config;
}

TEST(Schedule, WarmsUpLinearly) {
  for (const char* name : {"constant", "linear", "cosine", "polynomial"}) {
    const OptimizerConfig config = config_of(name);
    EXPECT_DOUBLE_EQ(learning_rate_at(config, 1, 110), 0.2) << name;
    EXPECT_DOUBLE_EQ(learning_rate_at(config, 10, 110), 2.0) << name;
  }
}

TEST(Schedule, DecaysAsItsFormulaSays) {
  EXPECT_DOUBLE_EQ(learning_rate_at(config_of("constant"), 110, 110), 2.0);
  EXPECT_DOUBLE_EQ(learning_rate_at(config_of("linear"), 60, 110), 2.0 * 0.55);
  EXPECT_DOUBLE_EQ(learning_rate_at(config_of("linear"), 110, 110), 0.2);
  EXPECT_NEAR(learning_rate_at(config_of("cosine"), 60, 110), 2.0 * 0.55, 1e-12);
  EXPECT_NEAR(learning_rate_at(config_of("cosine"), 35, 110),
              2.0 * (0.1 + 0.9 * (1 + std::cos(M_PI / 4)) / 2), 1e-12);
  EXPECT_NEAR(learning_rate_at(config_of("cosine"), 110, 110), 0.2, 1e-12);
  EXPECT_NEAR(learning_rate_at(config_of("polynomial"), 60, 110), 2.0 * (0.1 + 0.9 * 0.25), 1e-12);
  EXPECT_NEAR(learning_rate_at(config_of("polynomial"), 110, 110), 0.2, 1e-12);
}

TEST(Schedule, NoWarmUpAndBeyondTheEnd) {
  OptimizerConfig config = config_of("linear");
  config.warmup_steps = 0;
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 50, 100), 2.0 * 0.55);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 1000, 100), 0.2);
}

TEST(Schedule, AWarmUpLongerThanTheRunIsATenthOfIt) {
  OptimizerConfig config = config_of("linear");
  config.warmup_steps = 100;
  EXPECT_EQ(warmup_steps_of(config, 100), 100);
  EXPECT_EQ(warmup_steps_of(config, 99), 9);
  EXPECT_EQ(warmup_steps_of(config, 5), 1);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 2, 50), 2.0 * 2 / 5);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 5, 50), 2.0);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 50, 50), 0.2);
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 1, 1), 2.0);
}

}  // namespace
}  // namespace longnet::test
