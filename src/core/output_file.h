// OutputFile: a file that appears whole or not at all. Everything that the program writes and that
// a reader may take for complete goes through here; logs, which grow line by line, do not.
//
// The bytes go to a temporary name beside the target (NAME.tmpPID-N), which the writer holds locked
// (flock). commit() syncs it, renames it over the target and syncs the folder. A temporary that
// nobody holds locked is what a killed process left: remove_stale_temporaries() takes it away.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace longnet {

class OutputFile {
 public:
  /// Creates the temporary beside `path`; what stands at `path` stays as it is until commit().
  /// A symbolic link is followed and stays a link; an existing file keeps its permissions. A device
  /// or a pipe (/dev/null, /dev/stdout) is written directly. Throws Error with path and cause: no
  /// such folder, no permission, `path` is a folder or write-protected.
  explicit OutputFile(const std::string& path);
  /// Without commit(): the temporary is removed.
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  /// Appends. Throws Error with path and cause (a full disk included).
  void write(const void* data, int64_t bytes);
  void write(std::string_view text) { write(text.data(), static_cast<int64_t>(text.size())); }
  /// Called with every piece that has been written, in order: for a checksum.
  void set_observer(std::function<void(const void* data, int64_t bytes)> observer) {
    observer_ = std::move(observer);
  }
  /// Bytes written so far.
  int64_t bytes() const { return bytes_; }
  /// Syncs, compares the file's size with the bytes written, renames. Throws Error; then the
  /// target is as it was and the temporary is removed.
  void commit();

 private:
  std::string path_, target_, temporary_;  // as asked for; behind links; empty: written directly
  int file_ = -1;
  int64_t bytes_ = 0;
  std::function<void(const void*, int64_t)> observer_;

  void create_temporary(int mode);
  void discard();
};

/// A whole text at once.
void write_output_file(const std::string& path, std::string_view text);

/// Throws the Error that OutputFile(path) would throw; leaves the file system as it was.
void check_output_path(const std::string& path);

/// Removes the temporaries of dead processes from a folder (not below it); those that a living
/// process on any host writes are locked and stay. A folder that is missing or cannot be read
/// counts as empty. Returns how many were removed.
int64_t remove_stale_temporaries(const std::string& folder);

}  // namespace longnet
