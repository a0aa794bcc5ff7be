// Communicator: a group of ranks and the collectives that the trainer uses, over one transport.
//
// Transports: single (one rank, no library), mpi (CPU), nccl (GPU memory; communicator_nccl.h says
// what differs), counting (`longnet plan`: behaves like rank p of P, moves nothing, counts bytes).
// All ranks of a group call the same operations in the same order. progress(), test() and wait() of
// *any* communicator of the job advance all non-blocking operations. Only the thread that created
// the MpiSession may call anything here. A communicator owns no data buffers.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace longnet {

class Communicator {
 public:
  /// Handle of a non-blocking operation; 0 is "nothing".
  using Request = int64_t;

  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string transport() const = 0;  // "single", "mpi", "counting", "nccl"
  /// Where the buffers of the three start_* operations must lie. The single and the counting
  /// transport touch no buffer and accept any.
  virtual Device device() const { return {}; }
  /// True if operations run in order on a GPU stream, each after the work that the compute stream
  /// had when the operation started. Then start as many as are ready, let successive ones share
  /// their staging, and expect wait() to order later work of the compute stream instead of blocking
  /// the host.
  virtual bool on_stream() const { return false; }
  /// This rank's index among, and the number of, the group's ranks on the same node (ranks that can
  /// share memory), in rank order. The counting transport knows no nodes and assumes a single one.
  virtual int local_rank() const = 0;
  virtual int local_size() const = 0;

  /// Ranks with equal color form a group, ordered by key; color < 0: no group (null).
  /// Collective. The counting transport cannot know the other ranks' colors and throws.
  virtual std::unique_ptr<Communicator> split(int64_t color, int64_t key) = 0;
  /// split() by a caller that knows the resulting group's size and this rank's index in it, as
  /// plans do: the only form that works on every transport. Throws Error if the group differs.
  virtual std::unique_ptr<Communicator> split_known(int group_size, int group_rank, int64_t color,
                                                    int64_t key);

  virtual void barrier() = 0;
  /// Copies root's bytes to all ranks.
  virtual void broadcast(void* data, int64_t bytes, int root) = 0;
  /// In-place sum over all ranks; the same bits on every rank.
  virtual void all_reduce_sum(std::span<double> values) = 0;
  virtual void all_reduce_sum(std::span<int64_t> values) = 0;
  virtual void all_reduce_max(std::span<double> values) = 0;
  /// One string per rank, on every rank.
  virtual std::vector<std::string> all_gather_strings(const std::string& mine) = 0;
  /// All-gather of host memory on every transport, with the arguments of start_all_gather; complete
  /// on return.
  virtual void all_gather_host(void* buffer, std::span<const int64_t> begin_bytes) {
    wait(start_all_gather(buffer, begin_bytes));
  }

  /// In-place sum of n floats over all ranks, each element added in rank order in float32: the same
  /// bits on every rank and in every run. The caller must not touch the memory until wait().
  virtual Request start_all_reduce_sum(float* values, int64_t n) = 0;
  /// In-place all-gather: member m's chunk is bytes [begin[m], begin[m + 1]) of buffer; the own
  /// chunk is filled.
  virtual Request start_all_gather(void* buffer, std::span<const int64_t> begin_bytes) = 0;
  /// In-place reduce-scatter: every rank holds values for all chunks (begin: [size + 1] floats);
  /// the own chunk becomes the sum, added in rank order in float32; the other chunks keep their
  /// values. staging: (size - 1) * own chunk floats, separate from `buffer`; on a GPU the sum of
  /// all chunks is enough if that is less. All three operations release `begin` on return and use
  /// the buffers until wait(); empty chunks are allowed.
  virtual Request start_reduce_scatter(float* buffer, std::span<const int64_t> begin,
                                       float* staging) = 0;
  virtual bool test(Request request) = 0;  // true when finished (then the handle is gone)
  virtual void wait(Request request) = 0;
  /// Advances all outstanding operations. Never throws: an error is kept and thrown by the next
  /// test(), wait() or start_*, so kernels may call it in their loops.
  virtual void progress() = 0;

  /// Payload bytes that this rank has sent in the three start_* operations, counted as a direct
  /// exchange: all-gather (size - 1) * own chunk; reduce-scatter all chunks but the own; all-reduce
  /// a reduce-scatter and an all-gather of `size` blocks: 2 (size - 1) / size * n * 4 if size
  /// divides n.
  int64_t bytes_sent() const { return bytes_sent_; }
  /// Bytes of the operation started last.
  int64_t last_bytes() const { return last_bytes_; }

  /// Count a start_all_gather with a chunk of `own` bytes, or a start_reduce_scatter of `all`
  /// floats with an own chunk of `own`, and move nothing: for the counting transport, where a list
  /// of the chunks of a million ranks would cost more than everything else.
  void count_all_gather(int64_t own);
  void count_reduce_scatter(int64_t all, int64_t own);

 protected:
  // Checks the arguments of a start_* operation and counts its bytes; shared by the transports.
  void count_all_reduce(int64_t n);
  void count_all_gather(std::span<const int64_t> begin_bytes);
  void count_reduce_scatter(std::span<const int64_t> begin);

 private:
  void check_chunks(std::span<const int64_t> begin) const;
  void count_sent(int64_t bytes);
  int64_t bytes_sent_ = 0;
  int64_t last_bytes_ = 0;
};

/// Throws Error unless `view` lies where `communicator`'s operations work. name: for the message.
void check_on_device(const Communicator& communicator, const TensorView& view, const char* name);
/// A communicator of the same ranks for operations on `view`, which is checked first; null for one
/// rank. Collective.
std::unique_ptr<Communicator> same_ranks_for(Communicator& world, const TensorView& view,
                                             const char* name);

/// First element of block `index` when n elements are cut into `blocks` nearly equal blocks; n for
/// index == blocks. All-reduce cuts this way.
int64_t block_begin(int64_t n, int blocks, int index);

std::unique_ptr<Communicator> make_single_communicator();
/// Rank p of P of a job that does not exist; collectives leave the data unchanged.
std::unique_ptr<Communicator> make_counting_communicator(int size, int rank);

/// Time limit for every wait of this process for other ranks in host memory (MPI). A longer wait
/// throws one line with rank, host, operation and the missing ranks; inside MPI's own blocking
/// calls it prints that line and ends the process. 0: no limit. The initial value is the default of
/// parallel.timeout_s. Returns the old limit.
double set_host_timeout(double seconds);
/// While one exists, this process waits for ranks that may work alone for long (rank 0 saves a
/// checkpoint, builds a cache): the time limit is multiplied by kFactor.
class LoneWork {
 public:
  static constexpr int kFactor = 6;
  LoneWork();
  ~LoneWork();
  LoneWork(const LoneWork&) = delete;
  LoneWork& operator=(const LoneWork&) = delete;
};
/// Call it when the process is asked to end (safe in a signal handler): a wait for other ranks that
/// continues then prints once, to standard error, what it waits for. A launcher that has lost a
/// rank signals the others in this way a moment before it kills them.
void note_termination() noexcept;

/// MPI's lifetime: construct it first in main (MPI_THREAD_FUNNELED). Without mpirun there is one
/// rank; under another MPI's mpirun the constructor throws. The destructor finalises MPI unless an
/// exception is unwinding. Waits for other ranks during set-up, use and shutdown obey
/// set_host_timeout().
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;
  /// Waits until all ranks have finished their work; at the time limit throws Error naming those
  /// that have not. Call it before the destructor.
  void wait_for_all();
  /// Ends all ranks with this exit code; does not return.
  [[noreturn]] static void abort(int exit_code);
  static bool initialised();
};
/// Bytes of the largest single MPI message unless asked otherwise: far from the limit of int, which
/// MPI's counts are, and large enough that the overhead of a message is nothing.
inline constexpr int64_t kLargestMpiMessage = int64_t{1} << 30;
/// All ranks of the job; needs an MpiSession. Collective. Destroy it before the session.
/// message_bytes: larger transfers go in pieces of so many, 8 to 2^30, equal on all ranks; groups
/// that are split off keep it. Smaller ones are for networks that are slow with long messages.
std::unique_ptr<Communicator> make_mpi_communicator(int64_t message_bytes = kLargestMpiMessage);

}  // namespace longnet
