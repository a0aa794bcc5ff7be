// InputFile: a regular file, open for random-access reads. It uses pread, not a memory map: if
// another process truncates the file while it is in use, the result is an Error that names it, not
// a SIGBUS.
#pragma once

#include <cstdint>
#include <string>

namespace longnet {

class InputFile {
 public:
  /// Throws Error with path and cause if the file is missing, unreadable or not a regular file (a
  /// folder, a pipe, a device). Never blocks on a pipe.
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  /// Size in bytes when the file was opened.
  int64_t size() const { return size_; }
  /// Copies bytes [begin, begin + bytes) to `to`. Throws Error if they cannot be read or the file
  /// has become shorter. Several threads may call it at once.
  void read(int64_t begin, void* to, int64_t bytes) const;
  /// Copies up to `bytes` bytes starting at `begin`; returns how many there were.
  int64_t read_some(int64_t begin, void* to, int64_t bytes) const;

 private:
  std::string path_;
  int file_ = -1;
  int64_t size_ = 0;
};

/// "a folder", "a pipe", ... for a path that is not a regular file; empty for a regular file.
/// Throws Error if the path does not exist.
std::string irregular_kind(const std::string& path);

/// The whole text of a regular file of at most `limit` bytes; throws Error for a longer one.
std::string read_input_file(const std::string& path, int64_t limit);

}  // namespace longnet
