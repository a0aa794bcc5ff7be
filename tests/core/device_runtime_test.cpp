// What the device runtime promises where there is no GPU: reasons and one-line errors, no crash.
#include "core/device_runtime.h"

#include <gtest/gtest.h>

namespace longnet::test {
namespace {

TEST(DeviceRuntime, EitherDevicesOrAReason) {
  const device_runtime::Availability found = device_runtime::availability();
  EXPECT_EQ(found.devices.empty(), !found.reason.empty()) << found.reason;
  EXPECT_EQ(found.reason.find('\n'), std::string::npos) << found.reason;
  if (!device_runtime::built_with_cuda()) {
    EXPECT_EQ(found.reason.rfind("built without CUDA: configure with the preset cuda", 0), 0u)
        << found.reason;
  }
}

TEST(DeviceRuntime, CallsSayWhatIsMissing) {
  if (!device_runtime::availability().devices.empty()) GTEST_SKIP() << "this machine has a GPU";
  const auto message_of = [](const auto& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  // Statement, CUDA's text, device and host; or the stub's line.
  const std::string select = message_of([] { device_runtime::select({DeviceType::kCUDA, 0}); });
  const std::string allocate = message_of([] { device_runtime::allocate(256); });
  const std::string stream = message_of([] { device_runtime::make_stream(); });
  if (device_runtime::built_with_cuda()) {
    EXPECT_NE(select.find("cudaSetDevice(device.index) failed: "), std::string::npos) << select;
    EXPECT_EQ(select.rfind("GPU ", 0), 0u) << select;
    EXPECT_NE(allocate.find("cudaMalloc failed: "), std::string::npos) << allocate;
    EXPECT_NE(stream.find("src/core/device_runtime_cuda.cpp"), std::string::npos) << stream;
  } else {
    for (const std::string& message : {select, allocate, stream})
      EXPECT_EQ(message, device_runtime::availability().reason);
  }
  device_runtime::free(nullptr);
  device_runtime::free_host(nullptr);
  device_runtime::range_push("range");
  device_runtime::range_pop();
}

TEST(DeviceRuntime, DeviceNames) {
  EXPECT_EQ(device_name({}), "cpu");
  EXPECT_EQ(device_name({DeviceType::kCUDA, 2}), "cuda:2");
}

}  // namespace
}  // namespace longnet::test
