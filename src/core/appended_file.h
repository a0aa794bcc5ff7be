// AppendedFile: appends whole lines to a file that may fail at any time (a full disk, a lost
// server). A failed append is reported to the caller and counted; it never throws.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace longnet {

class AppendedFile {
 public:
  explicit AppendedFile(std::string path);
  ~AppendedFile();
  AppendedFile(const AppendedFile&) = delete;
  AppendedFile& operator=(const AppendedFile&) = delete;

  const std::string& path() const { return path_; }
  /// Creates the file and its folder if they do not exist. Returns false, with cause(), if the file
  /// cannot be written or is not a regular file. Calling it before append() is optional.
  bool open();
  /// Returns false, with cause(), if not all of `lines` reached the file. The next successful
  /// append first ends a line that was cut.
  bool append(std::string_view lines);
  /// Number of appends that have failed since the last success.
  int64_t failed() const { return failed_; }
  /// True if the last append found the file deleted or moved away, and began a new one.
  bool renewed() const { return renewed_; }
  /// Why the last call failed.
  const std::string& cause() const { return cause_; }

 private:
  bool write_all(std::string_view text);
  bool is_in_place() const;

  std::string path_, cause_;
  int file_ = -1;
  int64_t failed_ = 0;
  bool torn_ = false;  // the file ends in a part of a line
  bool renewed_ = false;
};

}  // namespace longnet
