// InputFile: a regular file, open for reading at any place. Reads by pread, never by a map: a file
// that another process cuts while it is in use is an Error that names it, not a SIGBUS.
#pragma once

#include <cstdint>
#include <string>

namespace longnet {

class InputFile {
 public:
  /// Throws Error with path and cause if the file is missing, unreadable or no regular file (a
  /// folder, a pipe, a device); never waits for a pipe's writer.
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  /// Bytes, as found when it was opened.
  int64_t size() const { return size_; }
  /// Copies bytes [begin, begin + bytes) to `to`. Throws Error if they cannot be read or the file
  /// has become shorter. May be called by several threads at once.
  void read(int64_t begin, void* to, int64_t bytes) const;
  /// Copies up to `bytes` bytes from `begin` on; returns how many there were.
  int64_t read_some(int64_t begin, void* to, int64_t bytes) const;

 private:
  std::string path_;
  int file_ = -1;
  int64_t size_ = 0;
};

/// "a folder", "a pipe", ... for a path that is no regular file; empty for one that is. Throws
/// Error if there is nothing.
std::string irregular_kind(const std::string& path);

/// The whole text of a regular file of at most `limit` bytes; throws Error for a longer one.
std::string read_input_file(const std::string& path, int64_t limit);

}  // namespace longnet
