// See signals.h. The handler only sets flags, and calls what POSIX allows in one.
#include "train/signals.h"

#include <omp.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "core/clock.h"
#include "core/error.h"
#include "dist/communicator.h"

namespace longnet {
namespace {

// `timeout`, a closing terminal and some launchers send a signal twice at once.
constexpr double kSettleSeconds = 0.5;

// The frame of a signal alone takes up to 11 KiB where registers of AMX are saved.
constexpr size_t kStackBytes = 64 * 1024;

volatile std::sig_atomic_t save_wanted = 0, stop_signal = 0, training = 0, speaking = 0;
volatile std::sig_atomic_t holding = 0, held_signal = 0, folders_removed = 0;
std::atomic<double> stop_time = 0;  // of the first request to end; any thread may take a signal
char removed_at_end[4096] = "";

void say(int signal, const char* text) {
  if (!speaking) return;
  char line[256] = "";
  std::strncat(line, signal_name(signal), 20);
  std::strncat(line, text, 200);
  [[maybe_unused]] const ssize_t ignored = write(STDERR_FILENO, line, std::strlen(line));
}

/// The file, then the folders that were made for it as far as they are empty. Cuts the path.
void remove_what_was_made() {
  if (removed_at_end[0] == '\0') return;
  unlink(removed_at_end);
  size_t length = std::strlen(removed_at_end);
  for (int i = 0; i < folders_removed; ++i) {
    while (length > 0 && removed_at_end[length - 1] != '/') --length;
    while (length > 1 && removed_at_end[length - 1] == '/') --length;
    removed_at_end[length] = '\0';
    rmdir(removed_at_end);
  }
}

[[noreturn]] void end_now(int signal, const char* text) {
  say(signal, text);
  remove_what_was_made();
  _exit(128 + signal);
}

[[noreturn]] void end_set_up(int signal) {
  end_now(signal, " during set-up: ended, no step was trained\n");
}

void on_stop(int signal) {
  if (holding) {
    held_signal = signal;
    return;
  }
  if (!training) end_set_up(signal);
  if (stop_signal == 0) {
    stop_time = seconds_now();
    stop_signal = signal;
    say(signal, ": saving after this step ... (a second SIGINT or SIGTERM ends at once)\n");
    return;
  }
  const bool insists = signal == SIGINT || signal == SIGTERM;
  if (insists && seconds_now() - stop_time >= kSettleSeconds)
    end_now(signal, " again: ended at once; the last checkpoint stays intact\n");
}

void on_signal(int signal) {
  const int saved_errno = errno;
  if (signal == SIGTERM) note_termination();
  if (signal == SIGUSR1)
    save_wanted = 1;
  else
    on_stop(signal);
  errno = saved_errno;
}

}  // namespace

SignalGuard::SignalGuard() {
  for (volatile std::sig_atomic_t* flag :
       {&save_wanted, &stop_signal, &training, &speaking, &holding, &held_signal, &folders_removed})
    *flag = 0;
  removed_at_end[0] = '\0';
  stack_.resize(kStackBytes);
  stack_t stack{};
  stack.ss_sp = stack_.data();
  stack.ss_size = stack_.size();
  sigaltstack(&stack, &old_stack_);
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  for (const int signal : kCaught) sigaddset(&action.sa_mask, signal);
  for (size_t i = 0; i < kCaught.size(); ++i) {
    sigaction(kCaught[i], nullptr, &old_[i]);
    if (kCaught[i] == SIGHUP && old_[i].sa_handler == SIG_IGN) continue;
    sigaction(kCaught[i], &action, nullptr);
  }
  struct sigaction ignore {};
  ignore.sa_handler = SIG_IGN;
  for (size_t i = 0; i < kIgnored.size(); ++i) sigaction(kIgnored[i], &ignore, &old_ignored_[i]);
}

SignalGuard::~SignalGuard() {
  removed_at_end[0] = '\0';
  for (size_t i = 0; i < kCaught.size(); ++i) sigaction(kCaught[i], &old_[i], nullptr);
  for (size_t i = 0; i < kIgnored.size(); ++i) sigaction(kIgnored[i], &old_ignored_[i], nullptr);
  if (old_stack_.ss_sp == nullptr) old_stack_.ss_flags = SS_DISABLE;
  sigaltstack(&old_stack_, nullptr);
}

void SignalGuard::speak() { speaking = 1; }

SignalGuard::Hold::Hold(bool wanted) { holding = wanted ? 1 : 0; }

SignalGuard::Hold::~Hold() {
  if (!holding) return;
  holding = 0;
  if (held_signal != 0) end_set_up(held_signal);
}

void SignalGuard::remove_at_end(const std::string& path, int folders) {
  LN_CHECK(path.size() < sizeof removed_at_end, "a path of {} bytes", path.size());
  // Empty while it changes: the handler must never see half a path.
  removed_at_end[0] = '\0';
  folders_removed = folders;
  if (path.empty()) return;
  std::memcpy(removed_at_end + 1, path.data() + 1, path.size());  // with the zero at the end
  removed_at_end[0] = path[0];
}

void SignalGuard::set_up_done() {
  sigset_t caught;
  sigemptyset(&caught);
  for (const int signal : kCaught) sigaddset(&caught, signal);
#pragma omp parallel
  if (omp_get_thread_num() != 0) pthread_sigmask(SIG_BLOCK, &caught, nullptr);
  training = 1;
}

bool SignalGuard::take_save() {
  const bool wanted = save_wanted != 0;
  if (wanted) save_wanted = 0;
  return wanted;
}

int SignalGuard::stop() const { return stop_signal; }

const char* signal_name(int signal) {
  switch (signal) {
    case SIGINT:
      return "SIGINT";
    case SIGTERM:
      return "SIGTERM";
    case SIGHUP:
      return "SIGHUP";
    case SIGUSR1:
      return "SIGUSR1";
    case SIGUSR2:
      return "SIGUSR2";
    default:
      return "a signal";
  }
}

}  // namespace longnet
