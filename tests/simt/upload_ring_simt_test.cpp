// UploadRing and host_copy.h on the emulated device, whose copies from page-locked memory happen
// as late as they may.
#include "core/host_copy.h"
#include "core/upload_ring.h"
#include "simt/device_runtime_emulated.h"
#include "simt/device_values.h"
#include "simt/support.h"

namespace longnet::simt_test {
namespace {

/// Uploads of many sizes, from one buffer that is written over each time; how many arrived wrong.
int64_t wrong_uploads(UploadRing& ring, const Context& context) {
  constexpr int kUploads = 200;
  constexpr int64_t kRoom = 3000;
  const DeviceValues device(DType::kI64, kUploads * kRoom);
  auto* place = static_cast<int64_t*>(device.data());
  const auto count_of = [](int i) { return 1 + (i * 37) % kRoom; };
  std::vector<int64_t> host(kRoom);
  for (int i = 0; i < kUploads; ++i) {
    for (int64_t j = 0; j < count_of(i); ++j) host[j] = i * kRoom + j;
    ring.copy(context, place + i * kRoom, host.data(), count_of(i) * 8);
  }
  std::fill(host.begin(), host.end(), -2);
  context.wait();
  const std::vector<int64_t> arrived = device.integers();
  int64_t wrong = 0;
  for (int i = 0; i < kUploads; ++i)
    for (int64_t j = 0; j < kRoom; ++j)
      wrong += arrived[i * kRoom + j] != (j < count_of(i) ? i * kRoom + j : -1);
  return wrong;
}

TEST(UploadRingSimt, EveryUploadArrivesWhateverTheLimit) {
  const Context context = gpu_context();
  // 1 KiB pieces in 4 KiB, up to all uploads in flight at once.
  for (const int64_t limit : {int64_t{4} << 10, int64_t{64} << 10, UploadRing::kLimitBytes}) {
    const simt::RuntimeCalls before =
        simt::emulated() ? simt::runtime_calls() : simt::RuntimeCalls{};
    UploadRing ring(limit);
    EXPECT_EQ(wrong_uploads(ring, context), 0) << limit;
    if (!simt::emulated()) continue;  // its runtime does not count
    const simt::RuntimeCalls first = simt::runtime_calls();
    EXPECT_LE(first.host_bytes - before.host_bytes, limit);
    EXPECT_EQ(first.waits > before.waits, limit < UploadRing::kLimitBytes) << limit;
    EXPECT_EQ(wrong_uploads(ring, context), 0) << limit;
    const simt::RuntimeCalls second = simt::runtime_calls();  // the first round has settled it
    EXPECT_EQ(second.host_bytes, first.host_bytes);
    EXPECT_EQ(second.waits > first.waits, first.waits > before.waits);
    EXPECT_EQ(second.events, first.events);
  }
}

TEST(UploadRingSimt, PlacesTakenTooEarlyAreFound) {
  const Context context = gpu_context();
  UploadRing ring(int64_t{64} << 10);
  {
    const simt::Defect early(simt::kEarlyEvents);
    EXPECT_GT(wrong_uploads(ring, context), 0);
  }
  EXPECT_EQ(wrong_uploads(ring, context), 0);
}

TEST(HostCopySimt, TensorsGoThereAndBackInPieces) {
  Context context = gpu_context();
  for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{1} << 20, (int64_t{5} << 20) + 3}) {
    std::vector<float> values(n), back(n, -1.0f);
    for (int64_t i = 0; i < n; ++i) values[i] = static_cast<float>(i % 16777213);
    const DeviceValues device(DType::kF32, n), other(DType::kF32, n);
    const std::vector<float> sent = values;
    copy_from_host(context, device.flat(), values.data());
    std::fill(values.begin(), values.end(), -2.0f);
    copy(context, other.flat(), device.flat());
    copy_to_host(context, back.data(), other.flat());
    EXPECT_EQ(back, sent) << n;
  }
}

TEST(HostCopySimt, AHostThatReadsTooEarlyIsFound) {
  Context context = gpu_context();
  const std::vector<float> values(1000, 3.0f);
  std::vector<float> back(1000);
  const DeviceValues device(DType::kF32, values);
  const simt::Defect early(simt::kEarlyEvents);
  copy_to_host(context, back.data(), device.flat());
  EXPECT_NE(back, values);
}

}  // namespace
}  // namespace longnet::simt_test
