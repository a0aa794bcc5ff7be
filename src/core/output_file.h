// OutputFile: a file that appears whole or not at all. The program writes every file through it
// that a reader may take for complete; logs, which grow line by line, are the exception.
//
// The bytes go to a temporary file beside the target (NAME.tmpPID-N), which the writer holds locked
// (flock). commit() syncs it, renames it over the target and syncs the folder. A temporary file
// without a lock is left over from a killed process; remove_stale_temporaries() removes it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace longnet {

class OutputFile {
 public:
  /// Creates the temporary file beside `path`; the file at `path` stays as it is until commit(). A
  /// symbolic link is followed and stays a link; an existing file keeps its permissions. A device
  /// or a pipe (/dev/null, /dev/stdout) is written directly. Throws Error with path and cause: no
  /// such folder, no permission, `path` is a folder or write-protected.
  explicit OutputFile(const std::string& path);
  /// Removes the temporary file unless commit() succeeded.
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  /// Appends. Throws Error with path and cause (a full disk included).
  void write(const void* data, int64_t bytes);
  void write(std::string_view text) { write(text.data(), static_cast<int64_t>(text.size())); }
  /// Called with every piece that has been written, in order; used for checksums.
  void set_observer(std::function<void(const void* data, int64_t bytes)> observer) {
    observer_ = std::move(observer);
  }
  /// Bytes written so far.
  int64_t bytes() const { return bytes_; }
  /// Syncs, compares the file's size with the bytes written, and renames. On failure throws Error,
  /// leaves the target as it was and removes the temporary file.
  void commit();

 private:
  std::string path_, target_, temporary_;  // as asked for; behind links; empty: written directly
  int file_ = -1;
  int64_t bytes_ = 0;
  std::function<void(const void*, int64_t)> observer_;

  void create_temporary(int mode);
  void discard();
};

/// Makes renames and new names in a folder last. Some file systems cannot sync a folder; then there
/// is nothing more to do. Throws Error with the folder and the cause.
void sync_folder(const std::string& folder);

/// Writes a whole text.
void write_output_file(const std::string& path, std::string_view text);

/// Throws the Error that OutputFile(path) would throw; leaves the file system unchanged.
void check_output_path(const std::string& path);

/// Removes temporary files of dead processes from a folder (not from its subfolders). A living
/// process, on any host, holds its files locked, so they stay. A folder that is missing or
/// unreadable counts as empty. Returns how many files were removed.
int64_t remove_stale_temporaries(const std::string& folder);

}  // namespace longnet
