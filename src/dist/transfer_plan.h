// What the nccl transport decides on the host: who sends what to whom, and when a wait is too long.
// No GPU and no library here, so all of it is tested without one.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace longnet::internal {

/// True if all chunks [begin[m], begin[m + 1]) have one length: NCCL's own collectives apply.
bool chunks_are_equal(std::span<const int64_t> begin);

/// Of ragged chunks: true if a direct exchange, each rank with each other, moves less over the
/// busiest rank's link, (size - 1) x largest chunk, than one broadcast or sum per chunk, all chunks
/// together. Then (size - 1) x any chunk is at most all chunks together.
bool direct_is_shorter(std::span<const int64_t> begin);

/// Elements [begin, begin + count) of the caller's buffer, or of the staging, to or from a peer.
struct Transfer {
  int peer = 0;
  int64_t begin = 0, count = 0;
  bool operator==(const Transfer&) const = default;
};
/// One rank's part in a group of sends and receives, empty ones left out; peers in a rotated order,
/// so that not all ranks send to rank 0 at once.
struct TransferPlan {
  std::vector<Transfer> sends, receives;
};
/// Every rank's chunk to every other rank, into the same place of the buffer.
TransferPlan gather_plan(std::span<const int64_t> begin, int rank);
/// Chunk m to rank m; receives[..].begin counts in the staging [size - 1][own chunk], where member
/// m has place m, or m - 1 above `rank`.
TransferPlan scatter_plan(std::span<const int64_t> begin, int rank);

/// Names the operation that is outstanding for too long. Times are seconds on any one clock.
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
  /// The one that started first among those over time.
  std::optional<Overdue> overdue(double now) const;
  bool idle() const { return running_.empty(); }
  /// Ends the watch over everything.
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

/// The line for it. where: "rank 3 on n1"; size: of the group that the operation runs on; missing:
/// who has not come, as far as that is known.
std::string overdue_message(const Watchdog::Overdue& overdue, const std::string& where, int size,
                            const std::string& missing = "another rank of the group");

}  // namespace longnet::internal
