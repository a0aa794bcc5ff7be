// See run_lock.h.
#include "train/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <sstream>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/json.h"
#include "core/log.h"
#include "core/system.h"
#include "core/text.h"

namespace longnet {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using namespace std::chrono_literals;

constexpr auto kBeat = 10s;
// Six missed beats. A holder that lives is seen to beat long before.
constexpr int64_t kStaleSeconds = 60;
constexpr size_t kLargestFile = 4096;  // bytes; a lock file has about 200

/// Differs between machines and between starts of a machine; empty where /proc has none.
std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string text;
  file >> text;
  return text;
}

/// Start time of a process in kernel ticks, which distinguishes it from a later process with the
/// same number; empty: no such process.
std::string process_start(int64_t process) {
  std::ifstream file(fmt::format("/proc/{}/stat", process));
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const size_t name_end = text.rfind(')');  // the name may hold spaces and brackets
  if (name_end == std::string::npos) return "";
  std::istringstream fields(text.substr(name_end + 1));
  std::string field;
  for (int number = 3; number <= 22; ++number) fields >> field;
  return field;
}

std::string new_token() {
  std::random_device device;
  return fmt::format("{:08x}{:08x}", device(), device());
}

/// The content of a lock file.
struct Holder {
  std::string host, boot, start, since, token;
  int64_t process = 0;

  std::string text() const {
    return fmt::format("process {} on {} since {}", process, one_line(host, 80),
                       one_line(since, 30));
  }
  std::string json() const {
    const Json json{{"host", host}, {"pid", process},   {"process_start", start},
                    {"boot", boot}, {"started", since}, {"token", token}};
    return json_text(json) + "\n";
  }
};

Holder this_process() {
  Holder self;
  self.host = host_name();
  self.boot = boot_id();
  self.process = getpid();
  self.start = process_start(self.process);
  self.since = utc_time_text();
  self.token = new_token();
  return self;
}

/// Empty if the file is empty, cut short or of something else, or cannot be read.
std::optional<Holder> read_holder(int file, bool* unreadable = nullptr) {
  char block[kLargestFile];
  const ssize_t bytes = pread(file, block, sizeof block, 0);
  if (unreadable != nullptr) *unreadable = bytes < 0;
  if (bytes <= 0) return std::nullopt;
  const Json json = parse_json(std::string_view(block, static_cast<size_t>(bytes)));
  try {
    Holder holder;
    holder.host = json.at("host");
    holder.process = json.at("pid");
    holder.start = json.at("process_start");
    holder.boot = json.at("boot");
    holder.since = json.at("started");
    holder.token = json.at("token");
    return holder;
  } catch (const Json::exception&) {
    return std::nullopt;
  }
}

bool same_machine(const Holder& a, const Holder& b) { return a.host == b.host && a.boot == b.boot; }

struct FileTime {
  timespec time{};
  bool operator==(const FileTime& other) const {
    return time.tv_sec == other.time.tv_sec && time.tv_nsec == other.time.tv_nsec;
  }
};

/// Time of the file's last touch; it is opened anew, because a network file system shows changes of
/// other machines only on opening.
std::optional<FileTime> last_touch(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return std::nullopt;
  struct stat info {};
  const bool known = fstat(file, &info) == 0;
  close(file);
  if (!known) return std::nullopt;
  return FileTime{info.st_mtim};
}

/// The file system's own time of day, which another machine's clock may differ from.
int64_t file_system_time(const std::string& folder) {
  const std::string path = fmt::format("{}/.run.lock.{}", folder, new_token());
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  struct stat info {};
  const bool known = file >= 0 && fstat(file, &info) == 0;
  if (file >= 0) close(file);
  unlink(path.c_str());
  return known ? info.st_mtim.tv_sec : static_cast<int64_t>(std::time(nullptr));
}

/// Folders that making `folder` would make, the deepest first.
std::vector<std::string> missing_folders(const std::string& folder) {
  std::vector<std::string> missing;
  std::error_code error;
  for (fs::path path = fs::path(folder); !path.empty() && !fs::exists(path, error);
       path = path.parent_path()) {
    if (path.has_filename()) missing.push_back(path.string());
    if (path == path.parent_path()) break;
  }
  return missing;
}

Error refused(const std::string& folder, const std::string& holder) {
  return Error(
      "run.folder {} is in use by {}; wait until it has ended, end it, or set another run.folder",
      folder, holder);
}

}  // namespace

struct RunLock::Impl {
  explicit Impl(const std::string& folder_in) : folder(folder_in), path(folder_in + "/run.lock") {}

  void make_folder();
  void take();
  bool try_to_take();
  bool open_file();
  bool lock_file();
  bool still_at_path() const;
  bool lives(const Holder& other);
  bool beats(const Holder& other);
  void write();
  void beat();
  void start_beating();
  void undo();
  std::optional<Holder> existing_holder() const;
  bool names_this() const;
  [[noreturn]] void refuse() const;

  const std::string folder, path;
  std::vector<std::string> made;  // folders, the deepest first
  Holder self = this_process();
  int file = -1;
  bool has_flock = true;
  bool created = false;  // the file, by this process
  std::thread beater;
  std::mutex mutex;
  std::condition_variable wake;
  bool ending = false;
};

void RunLock::Impl::make_folder() {
  made = missing_folders(folder);
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw Error("run.folder: {} cannot be created: {}", folder, error.message());
}

void RunLock::Impl::take() {
  constexpr int kAttempts = 100;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    if (try_to_take()) return;
    if (file >= 0) close(std::exchange(file, -1));
    std::this_thread::sleep_for(10ms);
  }
  throw Error(
      "{}: the lock of run.folder cannot be taken: other processes keep taking and releasing it",
      path);
}

/// False: the file was removed or the folder deleted meanwhile.
bool RunLock::Impl::try_to_take() {
  if (!open_file()) return false;
  if (!lock_file()) refuse();
  if (!still_at_path()) return false;
  const std::optional<Holder> other = existing_holder();
  if (other && lives(*other)) throw refused(folder, other->text());
  if (other)
    log_info("run.folder {}: {} no longer exists; its lock is taken over", folder, other->text());
  write();
  // Where flock holds on one machine only, another machine may take the same old file over now: the
  // token that stands there last wins.
  if (!created && !(other && same_machine(*other, self))) std::this_thread::sleep_for(300ms);
  return still_at_path() && names_this();
}

/// Who is named in the file. It is empty for the moment between its creation and the first write.
std::optional<Holder> RunLock::Impl::existing_holder() const {
  bool unreadable = false;
  std::optional<Holder> holder = read_holder(file, &unreadable);
  for (int i = 0; i < 20 && !holder && !unreadable && !created; ++i) {
    std::this_thread::sleep_for(50ms);
    holder = read_holder(file);
  }
  return holder;
}

/// The file as a later reader finds it. One that cannot be read is nobody else's.
bool RunLock::Impl::names_this() const {
  const int now = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (now < 0) return errno != ENOENT;
  bool unreadable = false;
  const std::optional<Holder> holder = read_holder(now, &unreadable);
  close(now);
  return unreadable || (holder && holder->token == self.token);
}

bool RunLock::Impl::open_file() {
  constexpr int kFlags = O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW;
  file = open(path.c_str(), kFlags | O_EXCL, 0644);
  created = file >= 0;
  if (file < 0 && errno == EEXIST) file = open(path.c_str(), kFlags, 0644);
  if (file < 0 && errno == ENOENT) {  // deleted by a process that made the folder and has failed
    make_folder();
    return false;
  }
  struct stat info {};
  if (file < 0 && errno == ELOOP)
    throw Error("{}: a symbolic link; remove it or set another run.folder", path);
  if (file < 0 || fstat(file, &info) != 0)
    throw Error(
        "{}: the lock of run.folder cannot be created: {}; set run.folder to a folder that you may "
        "write",
        path, system_cause());
  if (!S_ISREG(info.st_mode))
    throw Error("{}: not a regular file; remove it or set another run.folder", path);
  return true;
}

/// False: another open file has the lock. A file system without flock counts as locked.
bool RunLock::Impl::lock_file() {
  int result = 0;
  while ((result = flock(file, LOCK_EX | LOCK_NB)) != 0 && errno == EINTR) {
  }
  if (result == 0) return true;
  if (errno == EWOULDBLOCK) {
    created = false;  // whoever was quicker has it now
    return false;
  }
  has_flock = false;
  return true;
}

bool RunLock::Impl::still_at_path() const {
  struct stat ours {
  }, there{};
  return fstat(file, &ours) == 0 && stat(path.c_str(), &there) == 0 &&
         ours.st_ino == there.st_ino && ours.st_dev == there.st_dev;
}

void RunLock::Impl::refuse() const {
  // Who has just taken it may not have written its name yet.
  for (int attempt = 0; attempt < 20; ++attempt) {
    if (const auto other = read_holder(file)) throw refused(folder, other->text());
    std::this_thread::sleep_for(50ms);
  }
  throw refused(folder, "another process that has just started");
}

/// Of a holder whose flock, if there is one, is gone.
bool RunLock::Impl::lives(const Holder& other) {
  if (!same_machine(other, self)) return beats(other);
  if (has_flock) return false;
  const std::string start = process_start(other.process);
  return !start.empty() && start == other.start && other.process != self.process;
}

bool RunLock::Impl::beats(const Holder& other) {
  const std::optional<FileTime> first = last_touch(path);
  if (!first) return false;
  const int64_t age = file_system_time(folder) - first->time.tv_sec;
  if (age >= kStaleSeconds) return false;
  const int64_t wait = std::min(kStaleSeconds, kStaleSeconds - age);
  log_info("run.folder {}: waiting up to {} s to see whether {} still runs", folder, wait,
           other.text());
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(wait);
  while (std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(500ms);
    const std::optional<FileTime> touched = last_touch(path);
    if (!touched) return false;
    if (!(*touched == *first)) return true;
  }
  return false;
}

void RunLock::Impl::write() {
  const std::string text = self.json();
  if (ftruncate(file, 0) != 0 ||
      pwrite(file, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()) ||
      fsync(file) != 0)
    throw Error(
        "{}: the lock of run.folder cannot be written: {}; make room on the disk or set another "
        "run.folder",
        path, system_cause());
}

void RunLock::Impl::beat() {
  std::unique_lock<std::mutex> guard(mutex);
  while (!wake.wait_for(guard, kBeat, [&] { return ending; })) futimens(file, nullptr);
}

/// Signals are the training's: none may end up in this thread.
void RunLock::Impl::start_beating() {
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  try {
    beater = std::thread([this] { beat(); });
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
}

/// Removes what a failed start has made.
void RunLock::Impl::undo() {
  if (file >= 0) {
    if (created && still_at_path()) unlink(path.c_str());
    close(file);
  }
  for (const std::string& name : made)
    if (rmdir(name.c_str()) != 0) break;  // not empty: somebody uses it
}

RunLock::RunLock(const std::string& folder) : impl_(std::make_unique<Impl>(folder)) {
  try {
    impl_->make_folder();
    impl_->take();
    impl_->start_beating();
  } catch (...) {
    impl_->undo();
    throw;
  }
}

RunLock::~RunLock() {
  {
    const std::lock_guard<std::mutex> guard(impl_->mutex);
    impl_->ending = true;
  }
  impl_->wake.notify_all();
  impl_->beater.join();
  if (state() == State::kHeld) unlink(impl_->path.c_str());
  close(impl_->file);
  for (const std::string& folder : impl_->made)
    if (rmdir(folder.c_str()) != 0) break;  // not empty: a run is in it
}

RunLock::State RunLock::state() const {
  const int file = open(impl_->path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  // Only a file that is not there is a lost lock; a server that does not answer is none.
  if (file < 0) return errno == ENOENT || errno == ENOTDIR ? State::kGone : State::kHeld;
  bool unreadable = false;
  const std::optional<Holder> found = read_holder(file, &unreadable);
  close(file);
  if (unreadable) return State::kHeld;
  if (found) return found->token == impl_->self.token ? State::kHeld : State::kTaken;
  return impl_->still_at_path() ? State::kHeld : State::kTaken;
}

std::string RunLock::holder() const {
  const int file = open(impl_->path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return "";
  const std::optional<Holder> found = read_holder(file);
  close(file);
  return found ? found->text() : "";
}

const std::string& RunLock::path() const { return impl_->path; }
int RunLock::folders_made() const { return static_cast<int>(impl_->made.size()); }

}  // namespace longnet
