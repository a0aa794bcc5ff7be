// See input_file.h.
#include "core/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/error.h"
#include "core/system.h"

namespace longnet {
namespace {

constexpr int64_t kPieceBytes = 1 << 30;  // Linux reads at most 2 GiB at once

std::string kind_of(mode_t mode) {
  return S_ISREG(mode)    ? ""
         : S_ISDIR(mode)  ? "a folder"
         : S_ISFIFO(mode) ? "a pipe"
         : S_ISCHR(mode)  ? "a device"
         : S_ISBLK(mode)  ? "a disk"
         : S_ISSOCK(mode) ? "a socket"
                          : "a special file";
}

}  // namespace

InputFile::InputFile(const std::string& path) : path_(path) {
  // Asked before opening, too: opening a device may do things.
  if (const std::string kind = irregular_kind(path); !kind.empty())
    throw Error("{}: is {}, not a regular file", path, kind);
  file_ = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (file_ < 0) throw Error("{}: cannot be opened: {}", path, system_cause());
  struct stat info {};
  const bool known = ::fstat(file_, &info) == 0;
  if (known && S_ISREG(info.st_mode)) {
    size_ = info.st_size;
    return;
  }
  const std::string text = known ? "it is no regular file any more" : system_cause();
  ::close(file_);
  throw Error("{}: cannot be read: {}", path, text);
}

InputFile::~InputFile() {
  if (file_ >= 0) ::close(file_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), file_(std::exchange(other.file_, -1)), size_(other.size_) {}

int64_t InputFile::read_some(int64_t begin, void* to, int64_t bytes) const {
  char* next = static_cast<char*>(to);
  int64_t done = 0;
  while (done < bytes) {
    const ssize_t part = ::pread(
        file_, next + done, static_cast<size_t>(std::min(bytes - done, kPieceBytes)), begin + done);
    if (part < 0 && errno == EINTR) continue;
    if (part < 0)
      throw Error("{}: cannot be read at byte {}: {}", path_, begin + done, system_cause());
    if (part == 0) break;
    done += part;
  }
  return done;
}

void InputFile::read(int64_t begin, void* to, int64_t bytes) const {
  LN_CHECK(begin >= 0 && bytes >= 0 && begin + bytes <= size_, "{}: bytes [{}, {}) of {}", path_,
           begin, begin + bytes, size_);
  if (read_some(begin, to, bytes) == bytes) return;
  struct stat info {};
  ::fstat(file_, &info);
  throw Error("{}: holds {} bytes, it held {} when it was opened; it was cut while in use", path_,
              info.st_size, size_);
}

std::string irregular_kind(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) throw Error("{}: cannot be read: {}", path, system_cause());
  return kind_of(info.st_mode);
}

std::string read_input_file(const std::string& path, int64_t limit) {
  const InputFile file(path);
  if (file.size() > limit)
    throw Error("{}: holds {} bytes; allowed are {}", path, file.size(), limit);
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read(0, text.data(), file.size());
  return text;
}

}  // namespace longnet
