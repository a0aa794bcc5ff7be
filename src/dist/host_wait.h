// Internal to src/dist: waits of the host for other ranks. Each has a time limit, says for whom it
// waits when it takes long, and ends the job with one line when the limit passes.
//
// Two kinds. A HostWait is a loop that polls: it knows whose messages are missing and throws. A
// BlockingCall is a call of MPI that comes back only when all ranks have called it (connecting,
// splitting, finalising): a thread watches it, which calls nothing of MPI and ends the process, and
// with it the launcher's job. Only the time in which this process runs counts: one that is stopped
// and continued (SIGSTOP, a job that the scheduler suspends) finds no limit passed.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace longnet::internal {

/// Seconds after which a wait says for whom.
constexpr double kFirstWord = 10;

/// "rank 3 on n1", for messages.
std::string rank_and_host();
/// What rank_and_host() says from now on, and the hosts of all ranks of the job, where known.
void set_identity(int rank, std::vector<std::string> hosts);

/// Whom a group of ranks waits for.
struct Missing {
  std::vector<int> ranks;  // of the job, rising; empty: unknown
  /// Lower ranks of the group that may be waiting for the same: they speak first, and of a thousand
  /// ranks that wait for one, few say so.
  int speakers_before = 0;
};
/// "rank 3 on n1, rank 5 on n2"; "another rank of the group" for none; 4 at most by name.
std::string rank_names(const std::vector<int>& ranks);

/// When a wait says for whom, and when it ends. Of time and numbers only; for the two below.
class Patience {
 public:
  /// now: seconds on any one clock.
  explicit Patience(double now) : begin_(now), last_(now) {}
  /// To be called often; returns the seconds waited, without those in which nobody called.
  double seconds(double now);
  /// The first word is due: after kFirstWord seconds, later with speakers_before (of Missing) and
  /// after many words of this process, which its log then has. False once said() was called.
  bool word_due(double seconds, int speakers_before, int words_before) const;
  void said() { said_ = true; }
  bool has_said() const { return said_; }
  /// limit 0: never. Lower ranks come first here, too.
  static bool over(double seconds, double limit, int speakers_before);

 private:
  double begin_, last_;
  bool said_ = false;
};

/// One wait of the host for other ranks; ask again() in its loop. name, size: the operation and its
/// group, for messages. missing: asked when the wait is long.
class HostWait {
 public:
  using Asked = std::function<Missing()>;
  HostWait(const char* name, int size, Asked missing = {});
  /// Tells the end of a wait that was spoken of.
  ~HostWait();
  HostWait(const HostWait&) = delete;
  HostWait& operator=(const HostWait&) = delete;
  /// Lets others run, calls the hook, says for whom it waits after ten seconds, and throws when the
  /// wait is longer than set_host_timeout().
  void again();

 private:
  const char* name_;
  int size_;
  Asked missing_;
  int64_t key_;
  Patience patience_;
};
/// Called by every HostWait, may throw; null: nothing. The nccl transport looks for its own errors.
void set_wait_hook(void (*hook)());
/// Says once what is waited for if the process has been told to end (note_termination) and still
/// waits for the same thing a third of a second later. key: tells one wait from another.
void say_if_told_to_end(int64_t key, const char* name, int size);

/// Watches a blocking call of MPI while it lives. name: what the ranks do; rank: this one's place
/// in the group, where lower ones speak first. One at a time.
class BlockingCall {
 public:
  BlockingCall(const char* name, int rank, int size);
  ~BlockingCall();
  BlockingCall(const BlockingCall&) = delete;
  BlockingCall& operator=(const BlockingCall&) = delete;
};

}  // namespace longnet::internal
