// See appended_file.h.
#include "core/appended_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "core/system.h"

namespace longnet {

AppendedFile::AppendedFile(std::string path) : path_(std::move(path)) {}

AppendedFile::~AppendedFile() {
  if (file_ >= 0) close(file_);
}

bool AppendedFile::open() {
  if (file_ >= 0) return true;
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), ignored);
  // O_NONBLOCK: never wait for somebody who reads a pipe.
  const int file =
      ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
  if (file < 0) {
    cause_ = system_cause();
    return false;
  }
  struct stat info {};
  if (fstat(file, &info) != 0 || S_ISFIFO(info.st_mode) || S_ISSOCK(info.st_mode)) {
    close(file);
    cause_ = "it is a pipe";
    return false;
  }
  file_ = file;
  return true;
}

/// False if the name now stands for another file or for none. Its folder, if that is gone too, is
/// somebody else's to make anew.
bool AppendedFile::is_in_place() const {
  struct stat ours {
  }, named{};
  if (fstat(file_, &ours) != 0) return true;
  if (stat(path_.c_str(), &named) == 0)
    return ours.st_ino == named.st_ino && ours.st_dev == named.st_dev;
  std::error_code ignored;
  return errno != ENOENT ||
         !std::filesystem::exists(std::filesystem::path(path_).parent_path(), ignored);
}

bool AppendedFile::append(std::string_view lines) {
  renewed_ = file_ >= 0 && !is_in_place();
  if (renewed_) {
    close(std::exchange(file_, -1));
    torn_ = false;
  }
  const bool written = open() && (!torn_ || write_all("\n")) && write_all(lines);
  failed_ = written ? 0 : failed_ + 1;
  return written;
}

bool AppendedFile::write_all(std::string_view text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t written = write(file_, text.data() + done, text.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      cause_ = std::strerror(written < 0 ? errno : EIO);
      torn_ = torn_ || done > 0;
      return false;
    }
    done += static_cast<size_t>(written);
  }
  torn_ = false;
  return true;
}

}  // namespace longnet
