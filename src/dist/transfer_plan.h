// Decisions of the nccl transport on the host: who sends what to whom, and when a wait is too long.
// It uses neither GPU nor library, so all of it is tested without one.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace longnet::internal {

/// True if all chunks [begin[m], begin[m + 1]) have equal length: NCCL's own collectives apply.
bool chunks_are_equal(std::span<const int64_t> begin);

/// For ragged chunks: true if a direct exchange of each rank with each other moves less over the
/// busiest rank's link, (size - 1) x largest chunk, than one broadcast or sum per chunk, all chunks
/// together. Then (size - 1) x any chunk is at most the sum of all chunks.
bool direct_is_shorter(std::span<const int64_t> begin);

/// Elements [begin, begin + count) of the caller's buffer, or of the staging, sent to or received
/// from a peer.
struct Transfer {
  int peer = 0;
  int64_t begin = 0, count = 0;
  bool operator==(const Transfer&) const = default;
};
/// One rank's part in a group of sends and receives, without empty ones. Peers come in rotated
/// order, so that not all ranks send to rank 0 at once.
struct TransferPlan {
  std::vector<Transfer> sends, receives;
};
/// Sends every rank's chunk to every other rank, to the same place in the buffer.
TransferPlan gather_plan(std::span<const int64_t> begin, int rank);
/// Sends chunk m to rank m; receives[..].begin counts in the staging [size - 1][own chunk], where
/// member m has slot m, or m - 1 if above `rank`.
TransferPlan scatter_plan(std::span<const int64_t> begin, int rank);

/// Finds the operation that has been outstanding for too long. Times are seconds of any one clock.
class Watchdog {
 public:
  /// timeout 0: never.
  explicit Watchdog(double timeout_seconds) : timeout_(timeout_seconds) {}
  void started(int64_t id, const char* name, double now);
  void finished(int64_t id);
  struct Overdue {
    std::string name;
    double seconds = 0;  // since its start
    int64_t id = 0;
  };
  /// Of the operations over time, the one that started first.
  std::optional<Overdue> overdue(double now) const;
  /// Stops watching all operations.
  void clear() { running_.clear(); }

 private:
  struct Running {
    int64_t id;
    const char* name;
    double since;
  };
  double timeout_;
  std::vector<Running> running_;  // in order of their start
};

/// The message for it. where: "rank 3 on n1"; size: of the operation's group; missing: the ranks
/// that have not arrived, if known.
std::string overdue_message(const Watchdog::Overdue& overdue, const std::string& where, int size,
                            const std::string& missing = "another rank of the group");

}  // namespace longnet::internal
