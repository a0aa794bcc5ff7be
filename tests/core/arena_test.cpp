// Arena: alignment, counting, zeroing, and the message when there is no memory.
#include "core/arena.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <vector>

#include "core/device_runtime.h"

// In a sanitizer build a failed allocation must return null here too, not end the program.
extern "C" const char* __asan_default_options();
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }

namespace longnet {
namespace {

TEST(Arena, PiecesAreAlignedApartAndCounted) {
  Arena arena("activations");
  EXPECT_EQ(arena.purpose(), "activations");
  EXPECT_EQ(arena.bytes(), 0);
  int64_t total = 0;
  std::set<std::pair<char*, char*>> pieces;
  for (const int64_t n : {1, 63, 64, 65, 1000, 0}) {
    const TensorView t = arena.allocate(DType::kF32, {n});
    ASSERT_TRUE(t.defined()) << "null would mean 'not given'";
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data) % kAlignment, 0u);
    EXPECT_EQ(t.elements(), n);
    std::memset(t.data, 0x55, static_cast<size_t>(t.bytes()));
    char* begin = static_cast<char*>(t.data);
    for (const auto& [other_begin, other_end] : pieces)
      EXPECT_TRUE(begin >= other_end || begin + std::max<int64_t>(t.bytes(), 1) <= other_begin);
    pieces.insert({begin, begin + std::max<int64_t>(t.bytes(), 1)});
    total += (std::max<int64_t>(4 * n, 1) + kAlignment - 1) / kAlignment * kAlignment;
    EXPECT_EQ(arena.bytes(), total);
  }
}

TEST(Arena, ZeroedIsZero) {
  Arena arena("gradients");
  const TensorView t = arena.allocate_zeroed(DType::kF32, {33, 7});
  for (int64_t i = 0; i < t.elements(); ++i) ASSERT_EQ(t.f32()[i], 0.0f);
}

TEST(Arena, CountingTakesNoMemoryAndCountsAlike) {
  Arena real("x"), counting("x", true);
  EXPECT_TRUE(counting.counting());
  for (const int64_t n : {1, 100, 4096}) {
    real.allocate(DType::kBF16, {n, 3});
    const TensorView t = counting.allocate_zeroed(DType::kBF16, {n, 3});
    EXPECT_TRUE(t.defined());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data) % kAlignment, 0u);
    EXPECT_EQ(real.bytes(), counting.bytes());
  }
  counting.allocate(DType::kF32, {int64_t{1} << 50});  // no machine has that
  EXPECT_GT(counting.bytes(), int64_t{1} << 52);
}

TEST(Arena, ReservedBlockIsCutUpAndThenLeft) {
  Arena counting("x", true);
  for (const int64_t n : {5, 100, 64}) counting.allocate(DType::kF32, {n});
  Arena arena("x");
  arena.reserve(counting.bytes());
  std::vector<char*> pieces;
  for (const int64_t n : {5, 100, 64, 1}) {
    const TensorView t = arena.allocate_zeroed(DType::kF32, {n});
    std::memset(t.data, 0x55, static_cast<size_t>(t.bytes()));
    pieces.push_back(static_cast<char*>(t.data));
  }
  EXPECT_EQ(pieces[1] - pieces[0], 256);
  EXPECT_EQ(pieces[2] - pieces[1], 512);
  EXPECT_TRUE(pieces[3] < pieces[0] || pieces[3] >= pieces[0] + counting.bytes())
      << "the fourth does not fit any more";
  EXPECT_EQ(arena.bytes(), counting.bytes() + 256);
  EXPECT_THROW(arena.reserve(-1), Error);
}

TEST(Arena, TableListsWhatIsHeld) {
  const std::string before = arena_table();
  {
    Arena first("parameters"), counting("plans", true), second("activations"), empty("workspace");
    first.allocate(DType::kF32, {64});
    counting.allocate(DType::kF32, {64});
    second.allocate(DType::kF32, {65});
    const std::string table = arena_table();
    EXPECT_NE(table.find("parameters 256 bytes, activations 512 bytes"), std::string::npos)
        << table;
    EXPECT_EQ(table.find("plans"), std::string::npos) << table;
    EXPECT_EQ(table.find("workspace"), std::string::npos) << table;
  }
  EXPECT_EQ(arena_table(), before);
}

TEST(Arena, WithoutAGpuDeviceMemoryIsRefused) {
  if (!device_runtime::availability().devices.empty()) GTEST_SKIP() << "this machine has a GPU";
  Arena arena("activations", false, {DeviceType::kCUDA, 0});
  EXPECT_THROW(arena.allocate(DType::kF32, {64}), Error);
  EXPECT_EQ(arena.bytes(), 0);
  Arena counting("activations", true, {DeviceType::kCUDA, 0});
  EXPECT_EQ(counting.allocate_zeroed(DType::kF32, {64}).device, counting.device());
}

TEST(Arena, NoMemoryIsOneClearLine) {
  Arena arena("activations");
  arena.allocate(DType::kF32, {64});
  try {
    arena.allocate(DType::kF32, {int64_t{1} << 50});
    FAIL();
  } catch (const Error& e) {
    const std::string message = e.what();
    EXPECT_EQ(
        message.rfind("out of memory: 4503599627370496 bytes wanted for activations; held: ", 0),
        0u)
        << message;
    EXPECT_NE(message.find("held: activations 256 bytes; the machine has "), std::string::npos) << message;
  }
  EXPECT_EQ(arena.bytes(), 256);
  EXPECT_THROW(arena.allocate_bytes(-1), Error);
}

}  // namespace
}  // namespace longnet
