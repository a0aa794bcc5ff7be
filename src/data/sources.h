// Resolves the entries of data.train / data.validation to files of plain tokens: expands lists,
// folders and globs, unpacks .gz files and joins several byte files in the cache (cache.h). Skips
// hidden files, run folders and the cache; refuses what cannot be read or is of another kind than
// it seems.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/input_file.h"

namespace longnet {

/// A sequence of tokens of one width in a file. Tokens are read by pread (core/input_file.h).
class TokenFile {
 public:
  /// Tokens of `path` after the first `header_bytes`. width: 1, 2 or 4 bytes per token. hold: the
  /// file stays open; otherwise it is opened for every read (for very many files).
  TokenFile(const std::string& path, int64_t header_bytes, int width, bool hold);

  int64_t tokens() const { return tokens_; }
  int width() const { return width_; }
  const std::string& path() const { return path_; }
  /// Where token `place` starts in the file, in bytes.
  int64_t byte_offset(int64_t place) const { return header_bytes_ + place * width_; }
  /// Copies tokens [begin, begin + count) as int64. Throws Error naming the file if it can no
  /// longer be read or its size has changed.
  void copy(int64_t begin, int64_t count, int64_t* out) const;

 private:
  std::string path_;
  std::optional<InputFile> file_;  // empty: opened for every read
  int64_t file_bytes_ = 0;
  int64_t header_bytes_ = 0;
  int width_ = 1;
  int64_t tokens_ = 0;
};

/// The files that the entries of data.train or data.validation name.
struct Sources {
  std::vector<TokenFile> files;  // in order, all of one width
  int64_t source_files = 0;      // before several byte files were joined
  std::string left_out;          // "3 hidden, 1 run folder (runs/a)"; empty: nothing
};

/// Bytes per token of the first file of `entries`; 1 for text. Throws Error as open_sources().
int token_width(const std::vector<std::string>& entries, const std::string& key,
                const DataConfig& config);

/// The files of `entries` (key: "data.train" or "data.validation", for messages), in order. Builds
/// cache files if needed. Throws Error with file, cause and remedy.
Sources open_sources(const std::vector<std::string>& entries, const std::string& key,
                     const DataConfig& config);

}  // namespace longnet
