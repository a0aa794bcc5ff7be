// See random.h. Philox4x32-10 as published (Salmon et al., SC'11, section 3.3).
//
// For a GPU the host generates the numbers piece by piece and copies them: the bits are those of
// the CPU (log and cos of the device differ in the last digit), and it happens once per run. A
// thread generates about 20 million per second: 1e9 parameters take 3 seconds on 16 cores.
#include "kernels/random/random.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace longnet {
namespace {

/// FNV-1a, 64 bits: the name's part of the counter.
uint64_t hash_name(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (unsigned char c : name) hash = (hash ^ c) * 0x100000001b3u;
  return hash;
}

constexpr int64_t kStagedElements = int64_t{4} << 20;  // 16 MiB of host memory

/// out[i] = value(first + i), n numbers.
template <typename Value>
void make(Context& context, float* out, int64_t first, int64_t n, const Value& value) {
#pragma omp parallel for schedule(static) num_threads(context.threads()) if (n > 4096)
  for (int64_t i = 0; i < n; ++i)
    out[i] = static_cast<float>(value(static_cast<uint64_t>(first + i)));
}

template <typename Value>
void fill_each(Context& context, const TensorView& values, Value value) {
  LN_CHECK(values.contiguous(), "random fill of the strided {}", values.describe());
  if (context.counting()) return;
  const int64_t n = values.elements();
  if (context.device().type == DeviceType::kCPU) return make(context, values.f32(), 0, n, value);
  std::vector<float> staged(std::min(n, kStagedElements));
  float* out = values.on_gpu<float>();
  for (int64_t first = 0; first < n; first += kStagedElements) {
    const int64_t count = std::min(kStagedElements, n - first);
    make(context, staged.data(), first, count, value);
    device_runtime::copy_to_device(out + first, staged.data(),
                                   count * static_cast<int64_t>(sizeof(float)), context.stream());
    device_runtime::wait(context.stream());  // staged is written again
  }
}

}  // namespace

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9u;  // golden ratio
    key[1] += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return counter;
}

RandomStream::RandomStream(uint64_t seed, std::string_view name) {
  const uint64_t hash = hash_name(name);
  key_ = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  name_ = {static_cast<uint32_t>(hash), static_cast<uint32_t>(hash >> 32)};
}

std::array<uint32_t, 4> RandomStream::block(uint64_t index) const {
  return philox4x32(
      {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), name_[0], name_[1]}, key_);
}

uint32_t RandomStream::bits(uint64_t index) const { return block(index)[0]; }

double RandomStream::uniform(uint64_t index) const {
  const auto words = block(index);
  const uint64_t word = (uint64_t{words[0]} << 32 | words[1]) >> 11;
  return static_cast<double>(word) * 0x1p-53;
}

double RandomStream::normal(uint64_t index) const {
  const auto words = block(index);
  // Box-Muller on (0, 1] x [0, 1).
  const double u = (static_cast<double>((uint64_t{words[0]} << 32 | words[1]) >> 11) + 1) * 0x1p-53;
  const double v = static_cast<double>((uint64_t{words[2]} << 32 | words[3]) >> 11) * 0x1p-53;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * M_PI * v);
}

void fill_uniform(Context& context, const TensorView& values, uint64_t seed, std::string_view name,
                  double bound) {
  const RandomStream stream(seed, name);
  fill_each(context, values, [&](uint64_t i) { return (2.0 * stream.uniform(i) - 1.0) * bound; });
}

void fill_normal(Context& context, const TensorView& values, uint64_t seed, std::string_view name,
                 double deviation) {
  const RandomStream stream(seed, name);
  fill_each(context, values, [&](uint64_t i) { return stream.normal(i) * deviation; });
}

}  // namespace longnet
