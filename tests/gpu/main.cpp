// gpu_test: what a real GPU must show. Exit code 77, with one line, on a machine without one.
#include <gtest/gtest.h>

#include <cstdio>

#include "core/device_runtime.h"
#include "core/error.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const auto gpus = longnet::device_runtime::availability();
  if (gpus.devices.empty() && !testing::GTEST_FLAG(list_tests)) {
    fmt::print("SKIPPED: no GPU: {}\n", gpus.reason);
    return 77;
  }
  fmt::print("gpu_test: {} GPU{}\n", gpus.devices.size(), gpus.devices.size() == 1 ? "" : "s");
  std::fflush(stdout);
  return RUN_ALL_TESTS();
}
