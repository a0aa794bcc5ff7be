// Internal to src/dist: waits of the host for other ranks. Each has a time limit, names the missing
// ranks when it takes long, and ends the job with one line at the limit.
//
// There are two kinds. A HostWait is a polling loop: it knows whose messages are missing, and
// throws. A BlockingCall is an MPI call that returns only when all ranks have called it
// (connecting, splitting, finalising): a separate thread, which calls no MPI function, watches it
// and ends the process, and with it the launcher's job. Only time in which this process runs
// counts: a process that is stopped and continued (SIGSTOP, a job that the scheduler suspends) does
// not exceed the limit.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace longnet::internal {

/// Seconds after which a wait names the missing ranks.
constexpr double kFirstWord = 10;

/// "rank 3 on n1", for messages.
std::string rank_and_host();
/// Sets the text of rank_and_host(), and the hosts of all ranks of the job if known.
void set_identity(int rank, std::vector<std::string> hosts);

/// The ranks that a group waits for.
struct Missing {
  std::vector<int> ranks;  // of the job, rising; empty: unknown
  /// Number of lower ranks of the group that may wait for the same: they report first, so that of a
  /// thousand ranks that wait for one, few report.
  int speakers_before = 0;
};
/// "rank 3 on n1, rank 5 on n2", at most 4 by name; "another rank of the group" if empty.
std::string rank_names(const std::vector<int>& ranks);

/// Decides when a wait reports and when it ends. Works on times and numbers only; both kinds use
/// it.
class Patience {
 public:
  /// now: seconds of any one clock.
  explicit Patience(double now) : begin_(now), last_(now) {}
  /// Call it often; returns the seconds waited, excluding times in which nobody called it.
  double seconds(double now);
  /// Whether the first report is due: after kFirstWord seconds, later with speakers_before (of
  /// Missing) and after many reports of this process (they are in its log). False after said().
  bool word_due(double seconds, int speakers_before, int words_before) const;
  void said() { said_ = true; }
  bool has_said() const { return said_; }
  /// limit 0: never. Lower ranks come first here too.
  static bool over(double seconds, double limit, int speakers_before);

 private:
  double begin_, last_;
  bool said_ = false;
};

/// One wait of the host for other ranks; call again() in its loop. name, size: the operation and
/// its group, for messages. missing: called when the wait is long.
class HostWait {
 public:
  using Asked = std::function<Missing()>;
  HostWait(const char* name, int size, Asked missing = {});
  /// Reports the end of a wait that was reported.
  ~HostWait();
  HostWait(const HostWait&) = delete;
  HostWait& operator=(const HostWait&) = delete;
  /// Yields to other threads, calls the hook, reports the missing ranks after ten seconds, and
  /// throws when the wait exceeds set_host_timeout().
  void again();

 private:
  const char* name_;
  int size_;
  Asked missing_;
  int64_t key_;
  Patience patience_;
};
/// Every HostWait calls the hook, which may throw; null: none. The nccl transport checks for its
/// own errors there.
void set_wait_hook(void (*hook)());
/// Prints once what the process waits for, if it was asked to end (note_termination) and still
/// waits for the same thing a third of a second later. key: distinguishes waits.
void say_if_told_to_end(int64_t key, const char* name, int size);

/// Watches a blocking MPI call while it exists. name: what the ranks do; rank: this rank's index in
/// the group, in which lower ranks report first. One at a time.
class BlockingCall {
 public:
  BlockingCall(const char* name, int rank, int size);
  ~BlockingCall();
  BlockingCall(const BlockingCall&) = delete;
  BlockingCall& operator=(const BlockingCall&) = delete;
};

}  // namespace longnet::internal
