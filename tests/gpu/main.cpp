// gpu_test: what a real GPU must show; says how many there are, and cuDNN's version. Exit code 77,
// with one line, on a machine without one.
#include <gtest/gtest.h>

#include <cstdio>

#include "core/device_runtime.h"
#include "core/error.h"
#include "kernels/attention/attention_cudnn.h"

/// cuDNN's own; null in a program that is not linked with it.
extern "C" __attribute__((weak)) size_t cudnnGetVersion();

namespace {

std::string cudnn_version() {
  if (const std::string reason = longnet::cudnn::unavailable(); !reason.empty()) return reason;
  if (cudnnGetVersion == nullptr) return "version unknown";
  const size_t v = cudnnGetVersion();
  return fmt::format("{}.{}.{}", v / 10000, v / 100 % 100, v % 100);
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const auto gpus = longnet::device_runtime::availability();
  if (gpus.devices.empty() && !testing::GTEST_FLAG(list_tests)) {
    fmt::print("SKIPPED: no GPU: {}\n", gpus.reason);
    return 77;
  }
  fmt::print("gpu_test: {} GPU{}\n", gpus.devices.size(), gpus.devices.size() == 1 ? "" : "s");
  fmt::print("gpu_test: cuDNN: {}\n", cudnn_version());
  std::fflush(stdout);
  return RUN_ALL_TESTS();
}
