// See output_file.h. The lock belongs to the open file, so it ends with the process, however that
// ends. A remover may delete a new temporary file before its writer has locked it; the writer then
// sees that its file has no name any longer and creates another.
#include "core/output_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <vector>

#include "core/error.h"
#include "core/system.h"

namespace longnet {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPieceBytes = 16 << 20;
constexpr int kAttempts = 100;  // more than enough for leftovers of equal names and quick removers

std::string folder_of(const std::string& path) {
  const std::string folder = fs::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

/// The path behind symbolic links, also where the last one points to nothing yet.
std::string behind_links(const std::string& path) {
  std::string target = path;
  std::error_code error;
  for (int links = 0; links < 40 && fs::is_symlink(target, error); ++links) {
    const fs::path next = fs::read_symlink(target, error);
    if (error) break;
    target = next.is_absolute() ? next.string() : (fs::path(target).parent_path() / next).string();
  }
  return target;
}

/// True for NAME.tmpPID and NAME.tmpPID-N.
bool is_temporary_name(const std::string& name) {
  const size_t mark = name.rfind(".tmp");
  if (mark == std::string::npos || mark == 0 || mark + 4 == name.size()) return false;
  const std::string rest = name.substr(mark + 4);
  return rest.front() != '-' && rest.find_first_not_of("0123456789-") == std::string::npos;
}

}  // namespace

OutputFile::OutputFile(const std::string& path) : path_(path), target_(behind_links(path)) {
  struct stat info {};
  const bool exists = ::stat(target_.c_str(), &info) == 0;
  if (exists && S_ISDIR(info.st_mode)) throw Error("{}: is a folder; name a file", path);
  if (exists && ::access(target_.c_str(), W_OK) != 0)
    throw Error("{}: cannot be written: {}", path, system_cause());
  if (exists && !S_ISREG(info.st_mode)) {
    file_ = ::open(target_.c_str(), O_WRONLY | O_CLOEXEC);
    if (file_ < 0) throw Error("{}: cannot be written: {}", path, system_cause());
    return;
  }
  create_temporary(exists ? static_cast<int>(info.st_mode & 07777) : -1);
}

void OutputFile::create_temporary(int mode) {
  static std::atomic<int> count{0};
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    temporary_ = fmt::format("{}.tmp{}-{}", target_, ::getpid(), ++count);
    file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file_ < 0 && errno == EEXIST) continue;  // of a dead process with the same number
    if (file_ < 0) {
      const std::string text = system_cause();
      temporary_.clear();
      throw Error("{}: cannot be written: {}", path_, text);
    }
    struct stat info {};
    const bool locked = ::flock(file_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
    if (locked && ::fstat(file_, &info) == 0 && info.st_nlink > 0) {
      if (mode >= 0) ::fchmod(file_, static_cast<mode_t>(mode));
      return;
    }
    ::close(file_);  // a remover was quicker
    file_ = -1;
  }
  temporary_.clear();
  throw Error("{}: cannot be written: no temporary name beside it is free", path_);
}

OutputFile::~OutputFile() { discard(); }

void OutputFile::discard() {
  if (file_ < 0) return;
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  ::close(file_);
  file_ = -1;
}

void OutputFile::write(const void* data, int64_t bytes) {
  LN_CHECK(file_ >= 0, "{}: written after its end", path_);
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::write(file_, next, static_cast<size_t>(std::min(bytes, kPieceBytes)));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) throw Error("{}: cannot be written: {}", path_, system_cause());
    if (observer_) observer_(next, done);
    next += done;
    bytes -= done;
    bytes_ += done;
  }
}

void OutputFile::commit() {
  LN_CHECK(file_ >= 0, "{}: completed twice", path_);
  const auto fail = [&](const std::string& text) {
    discard();
    throw Error("{}: cannot be written: {}", path_, text);
  };
  if (temporary_.empty()) {
    const int fd = std::exchange(file_, -1);
    if (::close(fd) != 0) throw Error("{}: cannot be written: {}", path_, system_cause());
    return;
  }
  struct stat info {};
  if (::fsync(file_) != 0 || ::fstat(file_, &info) != 0) fail(system_cause());
  if (info.st_size != bytes_)
    fail(fmt::format("the file holds {} bytes of {}", info.st_size, bytes_));
  // Renamed while it is still locked: a remover must not take it.
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail(system_cause());
  temporary_.clear();
  const int fd = std::exchange(file_, -1);
  if (::close(fd) != 0) throw Error("{}: cannot be written: {}", path_, system_cause());
  sync_folder(folder_of(target_));
}

void sync_folder(const std::string& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;  // a folder that may be written, but not listed
  const bool failed = ::fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP;
  const std::string text = failed ? system_cause() : "";
  ::close(fd);
  if (failed) throw Error("{}: the folder cannot be synced: {}", folder, text);
}

void write_output_file(const std::string& path, std::string_view text) {
  OutputFile file(path);
  file.write(text);
  file.commit();
}

void check_output_path(const std::string& path) {
  struct stat info {};
  // Opening a pipe would wait for its reader.
  if (::stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode)) {
    if (::access(path.c_str(), W_OK) != 0)
      throw Error("{}: cannot be written: {}", path, system_cause());
    return;
  }
  const OutputFile probe(path);
}

int64_t remove_stale_temporaries(const std::string& folder) {
  std::error_code error;
  std::vector<std::string> candidates;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    if (is_temporary_name(it->path().filename().string()))
      candidates.push_back(it->path().string());
  int64_t removed = 0;
  for (const std::string& path : candidates) {
    const int fd = ::open(path.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) continue;
    struct stat info {};
    if (::fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && ::flock(fd, LOCK_EX | LOCK_NB) == 0 &&
        ::unlink(path.c_str()) == 0)
      ++removed;
    ::close(fd);
  }
  return removed;
}

}  // namespace longnet
