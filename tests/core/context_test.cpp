// Context: instruction set by environment, threads, progress, work and profiler ranges.
#include "core/context.h"

#include <gtest/gtest.h>
#include <omp.h>
#include <stdlib.h>

#include <thread>

namespace longnet {
namespace {

/// Sets LONGNET_ISA for a scope.
class IsaVariable {
 public:
  explicit IsaVariable(const char* value) {
    const char* old = ::getenv("LONGNET_ISA");
    had_ = old != nullptr;
    if (had_) old_ = old;
    ::setenv("LONGNET_ISA", value, 1);
  }
  ~IsaVariable() {
    if (had_)
      ::setenv("LONGNET_ISA", old_.c_str(), 1);
    else
      ::unsetenv("LONGNET_ISA");
  }

 private:
  bool had_ = false;
  std::string old_;
};

TEST(ContextIsa, EnvironmentLowersIt) {
  Isa best;
  {
    const IsaVariable none("");
    best = detect_isa();
  }
  for (const Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512}) {
    const IsaVariable wanted(isa_name(isa));
    if (isa <= best) {
      EXPECT_EQ(detect_isa(), isa);
      EXPECT_EQ(Context().isa(), isa);
    } else {
      EXPECT_THROW(detect_isa(), Error) << "a set the machine lacks must not be run";
    }
  }
  const IsaVariable wrong("sse9");
  try {
    detect_isa();
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "LONGNET_ISA=sse9: allowed are generic, avx2, avx512");
  }
}

TEST(Context, Threads) {
  const int before = omp_get_max_threads();
  EXPECT_EQ(Context().threads(), before);
  ContextOptions options;
  options.threads = 3;
  EXPECT_EQ(Context(options).threads(), 3);
  EXPECT_EQ(omp_get_max_threads(), 3);
  omp_set_num_threads(before);
  options.counting = true;
  EXPECT_EQ(Context(options).threads(), 3);
  EXPECT_EQ(omp_get_max_threads(), before) << "a counting context runs nothing and sets nothing";
}

TEST(Context, ProgressIsCalledWhenSet) {
  Context context;
  context.progress();  // none set: nothing happens
  int calls = 0;
  context.set_progress([&] { ++calls; });
  context.progress();
  context.progress();
  EXPECT_EQ(calls, 2);
}

TEST(Context, RangesAddUp) {
  Context context;
  const auto sleep = [](int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); };
  for (int i = 0; i < 2; ++i) {
    const Range range(context, "attention");
    sleep(5);
  }
  { const Range range(context, "loss"); }
  EXPECT_GE(context.seconds().at("attention"), 0.010);
  EXPECT_EQ(context.seconds().size(), 2u);
}

TEST(Context, WorkBeginsAtZero) {
  Context context;
  EXPECT_EQ(context.work().matmul_flops, 0);
  EXPECT_EQ(context.work().attention_flops, 0);
  context.work().matmul_flops += 5;
  EXPECT_EQ(context.work().matmul_flops, 5);
}

TEST(Context, WithoutAGpuCudaIsRefusedButCountingIsNot) {
  ContextOptions options;
  options.device.type = DeviceType::kCUDA;
  options.counting = true;
  const Context counting(options);
  EXPECT_EQ(counting.stream(), nullptr);
  counting.wait();
  if (!device_runtime::availability().devices.empty()) GTEST_SKIP() << "this machine has a GPU";
  options.counting = false;
  EXPECT_THROW(Context{options}, Error);
}

TEST(Context, TensorsOfAnotherDeviceAreNamed) {
  float value = 0;
  const Context context;
  check_on_device(context, TensorView(&value, DType::kF32, {1}), "x");
  check_on_device(context, TensorView(), "bias");  // not given
  try {
    check_on_device(context, TensorView(&value, DType::kF32, {1}, {DeviceType::kCUDA, 3}), "x");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "x f32[1] lies on cuda:3, this context works on cpu");
  }
}

}  // namespace
}  // namespace longnet
