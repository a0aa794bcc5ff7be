// Signals to a training: what each asks for, and when it is heard.
//
//   SIGUSR1                  a checkpoint after this step; training continues
//   SIGINT, SIGTERM, SIGHUP  a checkpoint after this step, then the end (SIGHUP that was ignored at
//                            the start, as under nohup, stays ignored)
//   SIGUSR2                  the same; sent by the launchers, which may repeat it
// During set-up there is nothing to save: all but SIGUSR1 end the process at once. So does a second
// SIGINT or SIGTERM half a second or more after the first request to end.
#pragma once

#include <array>
#include <csignal>
#include <string>
#include <vector>

namespace longnet {

/// Catches the signals above while it lives; one at a time. A launcher may send one as soon as the
/// job is there, so it is made before anything else of a training, on the thread that trains.
///
/// The handler has a stack of its own: products of oneDNN for AVX2 put the stack pointer into memory
/// of the heap while they run, and a handler on that stack would write over the heap.
class SignalGuard {
 public:
  SignalGuard();
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;

  /// From now on what is caught is said on standard error; for rank 0.
  void speak();
  /// A file that an end at once removes (the run's lock); empty: none. At most 4095 bytes.
  void remove_at_end(const std::string& path);
  /// From now on a request to end waits for the end of a step, and OpenMP's other threads, which have
  /// no stack for the handler, take no signal.
  void set_up_done();

  /// Whether a checkpoint was asked for since the last call.
  bool take_save();
  /// The first signal that asked for the end; 0: none.
  int stop() const;

 private:
  static constexpr std::array<int, 5> kCaught{SIGUSR1, SIGUSR2, SIGINT, SIGTERM, SIGHUP};
  std::array<struct sigaction, kCaught.size()> old_{};
  std::vector<char> stack_;  // of the handler
  stack_t old_stack_{};
};

/// "SIGTERM"
const char* signal_name(int signal);

}  // namespace longnet
