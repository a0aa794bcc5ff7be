// From the entries of data.train / data.validation to files that hold plain tokens: lists, folders
// and globs are expanded, .gz files unpacked, several byte files joined - each once, in the cache
// folder.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"

namespace longnet {

/// A memory-mapped run of tokens of one width.
class MappedTokens {
 public:
  /// Maps `path`; the first `header_bytes` are skipped. width: 1, 2 or 4 bytes a token.
  MappedTokens(const std::string& path, int64_t header_bytes, int width);
  ~MappedTokens();
  MappedTokens(MappedTokens&& other) noexcept;
  MappedTokens(const MappedTokens&) = delete;

  int64_t tokens() const { return tokens_; }
  int width() const { return width_; }
  const std::string& path() const { return path_; }
  /// Where token `place` starts in the file, in bytes.
  int64_t byte_offset(int64_t place) const { return header_bytes_ + place * width_; }
  /// Tokens [begin, begin + count) as int64.
  void copy(int64_t begin, int64_t count, int64_t* out) const;

 private:
  std::string path_;
  void* map_ = nullptr;
  int64_t map_bytes_ = 0;
  int64_t header_bytes_ = 0;
  int width_ = 1;
  int64_t tokens_ = 0;
};

/// The files behind `entries` (key: "data.train" or "data.validation", for messages), as maps in
/// order. Builds cache files where needed. Throws Error with file, cause and remedy.
std::vector<MappedTokens> open_sources(const std::vector<std::string>& entries,
                                       const std::string& key, const DataConfig& config);

}  // namespace longnet
