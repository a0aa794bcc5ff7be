// A cheap content hash that tells data apart (not secure against intent), and the positions it
// samples where hashing everything would take too long.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <string>

namespace longnet {

/// One of a family of well-mixed 64-bit functions (SplitMix64's finaliser).
inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// FNV-1a over whole numbers, mixed at the end.
class ContentHash {
 public:
  void add(uint64_t number) { state_ = (state_ ^ number) * 0x100000001b3u; }
  /// 16 hexadecimal digits.
  std::string text() const { return fmt::format("{:016x}", mix(state_)); }

 private:
  uint64_t state_ = 0xcbf29ce484222325u;
};

constexpr int64_t kHashedBytes = int64_t{64} << 20;  // half a second from a disk, 30 ms from memory
constexpr int64_t kSamplePieces = 256;               // seeks on a slow disk: 2.5 s

/// Calls use(first, count) for pieces of [0, total) in rising order. If total <= budget, the pieces
/// cover everything; otherwise there are kSamplePieces pieces of budget / kSamplePieces each,
/// evenly spread, including the first and the last.
template <typename Use>
void sample_places(int64_t total, int64_t budget, Use use) {
  const int64_t piece = std::max<int64_t>(1, budget / kSamplePieces);
  if (total <= piece * kSamplePieces) {
    for (int64_t first = 0; first < total; first += piece)
      use(first, std::min(piece, total - first));
    return;
  }
  for (int64_t i = 0; i < kSamplePieces; ++i)
    use(static_cast<int64_t>(static_cast<__int128>(total - piece) * i / (kSamplePieces - 1)),
        piece);
}

}  // namespace longnet
