// AppendedFile: whole lines at the end of a file that may fail at any time (a full disk, a lost
// server). A failed append is told to the caller and counted, never thrown.
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
  /// Makes the file, and its folder, if they are not there. False, with cause(): it cannot be
  /// written, or is no regular file. Not needed before append().
  bool open();
  /// False, with cause(): not all of it is in the file. A line that was cut so is ended before the
  /// next one that fits.
  bool append(std::string_view lines);
  /// Appends that have failed since the last success before this moment.
  int64_t failed() const { return failed_; }
  /// Why the last call failed.
  const std::string& cause() const { return cause_; }

 private:
  bool write_all(std::string_view text);

  std::string path_, cause_;
  int file_ = -1;
  int64_t failed_ = 0;
  bool torn_ = false;  // the file ends in a part of a line
};

}  // namespace longnet
