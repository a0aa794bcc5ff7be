// See host_wait.h.
#include "dist/host_wait.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "core/clock.h"
#include "core/config.h"
#include "core/error.h"
#include "core/log.h"
#include "core/system.h"
#include "dist/communicator.h"
#include "dist/pause.h"
#include "dist/transfer_plan.h"

namespace longnet {
namespace internal {
namespace {

// From the first moment on: what is before the configuration waits for other ranks, too.
double host_timeout = ParallelConfig{}.timeout_s;  // seconds; 0: never
int lone_work = 0;                                 // LoneWork objects alive
void (*wait_hook)() = nullptr;
volatile std::sig_atomic_t told_to_end = 0;

struct Identity {
  int rank = -1;  // in the job; -1: not known yet
  std::vector<std::string> hosts;
};
Identity& identity() {
  static Identity* instance = new Identity;  // the watching thread may outlive main()
  return *instance;
}

/// What holds for a wait that begins now.
struct Limit {
  double seconds = 0;  // 0: none
  bool lone_work = false;
};
Limit limit_now() {
  return {host_timeout * (lone_work > 0 ? LoneWork::kFactor : 1), lone_work > 0};
}

/// On standard error of every rank, and in its log where it has one.
void say(const std::string& line) {
  const bool has_log = log_is_set_up();
  if (has_log) log_warn("{}", line);
  if (has_log && identity().rank == 0) return;  // its log has been shown
  fmt::print(stderr, "{}\n", line);
  std::fflush(stderr);
}

int words = 0;  // said so far, by the main thread

void say_waiting(const char* name, double seconds, const std::vector<int>& ranks, Limit limit) {
  const std::string end =
      limit.seconds == 0
          ? "there is no limit (parallel.timeout_s=0)"
          : fmt::format("the job ends after {:.6g} s ({}parallel.timeout_s)", limit.seconds,
                        limit.lone_work ? fmt::format("{} x ", LoneWork::kFactor) : "");
  say(fmt::format("{}: {} has waited {:.0f} s for {}; {}", rank_and_host(), name, seconds,
                  rank_names(ranks), end));
}

}  // namespace

std::string rank_and_host() {
  const Identity& own = identity();
  if (own.rank < 0) return "a rank on " + host_name();
  const bool known = own.rank < static_cast<int>(own.hosts.size());
  return fmt::format("rank {} on {}", own.rank, known ? own.hosts[own.rank] : host_name());
}

void set_identity(int rank, std::vector<std::string> hosts) {
  identity().rank = rank;
  if (!hosts.empty()) identity().hosts = std::move(hosts);
}

std::string rank_names(const std::vector<int>& ranks) {
  constexpr size_t kNamed = 4;
  if (ranks.empty()) return "another rank of the group";
  const std::vector<std::string>& hosts = identity().hosts;
  std::string text;
  for (size_t i = 0; i < std::min(ranks.size(), kNamed); ++i) {
    text += fmt::format("{}rank {}", i == 0 ? "" : ", ", ranks[i]);
    if (ranks[i] < static_cast<int>(hosts.size())) text += " on " + hosts[ranks[i]];
  }
  if (ranks.size() > kNamed) text += fmt::format(" and {} more", ranks.size() - kNamed);
  return text;
}

double Patience::seconds(double now) {
  // Waits poll many times a second. Where none did for so long, this process was stopped itself.
  constexpr double kStopped = 5;
  if (now - last_ > kStopped) begin_ += now - last_;
  last_ = now;
  return now - begin_;
}

bool Patience::word_due(double seconds, int speakers_before, int words_before) const {
  // 10 s, 40 s, 160 s, ...: the second speaker is for the case that the first one is not there.
  constexpr int kCalmAfter = 10;
  const double factor = std::pow(4.0, std::min(speakers_before, 20)) *
                        std::pow(2.0, std::clamp(words_before - kCalmAfter, 0, 20));
  return !said_ && seconds >= kFirstWord * factor;
}

bool Patience::over(double seconds, double limit, int speakers_before) {
  constexpr double kGrace = 3;  // the first one's line ends the others before they speak
  return limit > 0 && seconds > limit + (speakers_before > 0 ? kGrace : 0);
}

HostWait::HostWait(const char* name, int size, Asked missing)
    : name_(name), size_(size), missing_(std::move(missing)), patience_(seconds_now()) {
  static int64_t last_key = 0;
  key_ = --last_key;  // below zero: the requests of the nccl transport are above
}

HostWait::~HostWait() {
  if (patience_.has_said() && std::uncaught_exceptions() == 0)
    say(fmt::format("{}: {} continues after {:.0f} s", rank_and_host(), name_,
                    patience_.seconds(seconds_now())));
}

void HostWait::again() {
  const double seconds = patience_.seconds(seconds_now());
  pause_in_wait(seconds);
  if (wait_hook != nullptr) wait_hook();
  say_if_told_to_end(key_, name_, size_);
  const Limit limit = limit_now();
  if (!patience_.word_due(seconds, 0, words) && !Patience::over(seconds, limit.seconds, 0)) return;
  const Missing missing = missing_ ? missing_() : Missing{};
  if (Patience::over(seconds, limit.seconds, missing.speakers_before))
    throw Error(
        "{}", overdue_message({name_, seconds}, rank_and_host(), size_, rank_names(missing.ranks)));
  if (!patience_.word_due(seconds, missing.speakers_before, words)) return;
  patience_.said();
  ++words;
  say_waiting(name_, seconds, missing.ranks, limit);
}

void set_wait_hook(void (*hook)()) { wait_hook = hook; }

void say_if_told_to_end(int64_t key, const char* name, int size) {
  constexpr double kPatience = 0.3;  // mpirun gives a second between SIGTERM and SIGKILL
  // A wait on the host (key below zero) may ask in turn with one for the GPU's stream.
  static int64_t waited_for[2] = {};
  static double since[2] = {};
  static bool said = false;
  if (!told_to_end || said) return;
  const int kind = key < 0 ? 0 : 1;
  if (key != std::exchange(waited_for[kind], key)) since[kind] = seconds_now();
  if (seconds_now() - since[kind] < kPatience) return;
  said = true;
  fmt::print(stderr,
             "{}: told to end (SIGTERM) while {} in a group of {} ranks waits for another rank; if "
             "the launcher names a lost rank, that is the one\n",
             rank_and_host(), name, size);
  std::fflush(stderr);
}

namespace {

/// The thread that watches blocking calls. It sleeps while there is none.
class Watcher {
 public:
  Watcher() {
    // Signals are for the main thread, whose handlers the program has set.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread([this] { watch(); }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  void begin(const char* name, int rank, int size) {
    const std::lock_guard lock(mutex_);
    name_ = name;
    rank_ = rank;
    size_ = size;
    limit_ = limit_now();
    ++call_;
    changed_.notify_one();
  }
  void end() {
    const std::lock_guard lock(mutex_);
    name_ = nullptr;
  }

 private:
  void watch() {
    constexpr auto kInterval = std::chrono::milliseconds(500);
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return name_ != nullptr; });
      const int64_t call = call_;
      Patience patience(seconds_now());
      while (name_ != nullptr && call == call_) {
        changed_.wait_for(lock, kInterval);
        if (name_ == nullptr || call != call_) break;
        const double seconds = patience.seconds(seconds_now());
        if (Patience::over(seconds, limit_.seconds, rank_)) end_process(seconds);
        if (!patience.word_due(seconds, rank_, 0)) continue;
        patience.said();
        say_waiting(name_, seconds, {}, limit_);
      }
    }
  }
  /// The main thread is inside of MPI, so only the launcher can end the other ranks: it does when
  /// one leaves without finalising.
  [[noreturn]] void end_process(double seconds) {
    fmt::print(stderr, "error: {}\n",
               overdue_message({name_, seconds}, rank_and_host(), size_, rank_names({})));
    std::fflush(stderr);
    std::_Exit(1);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const char* name_ = nullptr;  // null: nothing to watch
  int rank_ = 0, size_ = 1;
  Limit limit_;
  int64_t call_ = 0;
};

Watcher& watcher() {
  static Watcher* instance = new Watcher;  // its thread may outlive main()
  return *instance;
}

}  // namespace

BlockingCall::BlockingCall(const char* name, int rank, int size) {
  watcher().begin(name, rank, size);
}
BlockingCall::~BlockingCall() { watcher().end(); }

}  // namespace internal

double set_host_timeout(double seconds) { return std::exchange(internal::host_timeout, seconds); }

LoneWork::LoneWork() { ++internal::lone_work; }
LoneWork::~LoneWork() { --internal::lone_work; }

void note_termination() noexcept { internal::told_to_end = 1; }

}  // namespace longnet
