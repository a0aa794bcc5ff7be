// Signals to a training: the meaning of each, and when it takes effect.
//
//   SIGUSR1                  a checkpoint after this step; training continues
//   SIGINT, SIGTERM, SIGHUP  a checkpoint after this step, then the end (SIGHUP that was ignored at
//                            the start, as under nohup, stays ignored)
//   SIGUSR2                  the same; sent by the launchers, which may repeat it
//   SIGPIPE, SIGXFSZ         ignored: `| tee log` has ended, a file would pass ulimit -f; the write
//                            fails, and training does not depend on it
// During set-up there is nothing to save: every signal but SIGUSR1 ends the process at once. So
// does a second SIGINT or SIGTERM half a second or more after the first request to end.
#pragma once

#include <array>
#include <csignal>
#include <string>
#include <vector>

namespace longnet {

/// Catches the signals above while it exists; at most one exists at a time. A launcher may send a
/// signal as soon as the job exists, so construct it before everything else of a training, on the
/// thread that trains.
///
/// The handler has its own stack: oneDNN's AVX2 products point the stack pointer into heap memory
/// while they run, and a handler on that stack would overwrite the heap.
class SignalGuard {
 public:
  SignalGuard();
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;

  /// From now on prints caught signals to standard error; for rank 0.
  void speak();
  /// File (the run's lock) to remove when a signal ends the process at once, and how many of the
  /// folders above it were created for it; they are removed too if they are empty. Empty path: none.
  /// At most 4095 bytes.
  void remove_at_end(const std::string& path, int folders);
  /// While one exists, a request to end that arrives during set-up takes effect when it is
  /// destroyed: what is being created can then be removed. For short work. wanted false: no effect.
  class Hold {
   public:
    explicit Hold(bool wanted);
    ~Hold();
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
  };
  /// From now on a request to end takes effect at the end of a step, and OpenMP's other threads,
  /// which have no stack for the handler, block all signals.
  void set_up_done();

  /// Whether a checkpoint was requested since the last call.
  bool take_save();
  /// The first signal that requested the end; 0: none.
  int stop() const;

 private:
  static constexpr std::array<int, 5> kCaught{SIGUSR1, SIGUSR2, SIGINT, SIGTERM, SIGHUP};
  static constexpr std::array<int, 2> kIgnored{SIGPIPE, SIGXFSZ};
  std::array<struct sigaction, kCaught.size()> old_{};
  std::array<struct sigaction, kIgnored.size()> old_ignored_{};
  std::vector<char> stack_;  // of the handler
  stack_t old_stack_{};
};

/// "SIGTERM"
const char* signal_name(int signal);

}  // namespace longnet
