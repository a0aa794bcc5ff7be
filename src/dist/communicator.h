// Communicator: a group of ranks and the collectives the trainer uses, over one transport.
//
// Transports: single (one rank, no library), mpi (CPU), nccl (GPU memory; communicator_nccl.h says
// what differs), counting (`longnet plan`: behaves like rank p of P, moves nothing, counts bytes).
// All ranks of a group call the same operations in the same
// order. Non-blocking operations move on in progress(), test() and wait() of *any* communicator of
// the job. Only the thread that made the MpiSession may call anything here. It owns no data
// buffers.
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
  /// Where the buffers of the three start_* operations lie. The single and the counting transport
  /// touch none and take any.
  virtual Device device() const { return {}; }
  /// True if operations run one after another on a stream of the GPU, each behind what the compute
  /// stream had when it started. Then start as many as are ready, successive ones may share their
  /// staging, and wait() orders the compute stream's later work instead of blocking the host.
  virtual bool on_stream() const { return false; }
  /// This rank's place among, and the number of, the group's ranks on the same node (ranks that can
  /// share memory), in rank order. The counting transport knows no nodes and takes one for all.
  virtual int local_rank() const = 0;
  virtual int local_size() const = 0;

  /// Ranks with equal color form a group, ordered by key; color < 0: no group (null).
  /// Collective. The counting transport cannot know the other ranks' colors and throws.
  virtual std::unique_ptr<Communicator> split(int64_t color, int64_t key) = 0;
  /// split() by a caller who knows the resulting group's size and this rank's place in it, as plans
  /// do: the only form that works on every transport. Throws Error if the group comes out
  /// otherwise.
  virtual std::unique_ptr<Communicator> split_known(int group_size, int group_rank, int64_t color,
                                                    int64_t key);

  virtual void barrier() = 0;
  /// Copies root's bytes to all ranks.
  virtual void broadcast(void* data, int64_t bytes, int root) = 0;
  /// Sum in place over all ranks; the same bits on every rank.
  virtual void all_reduce_sum(std::span<double> values) = 0;
  virtual void all_reduce_sum(std::span<int64_t> values) = 0;
  virtual void all_reduce_max(std::span<double> values) = 0;
  /// One string per rank, on every rank.
  virtual std::vector<std::string> all_gather_strings(const std::string& mine) = 0;
  /// All-gather of host memory on every transport, arguments as start_all_gather's; finished at
  /// return.
  virtual void all_gather_host(void* buffer, std::span<const int64_t> begin_bytes) {
    wait(start_all_gather(buffer, begin_bytes));
  }

  /// In-place sum of n floats over all ranks, each element added in rank order in float32: the same
  /// bits on every rank and in every run. The caller leaves the memory alone until wait.
  virtual Request start_all_reduce_sum(float* values, int64_t n) = 0;
  /// In-place all-gather: member m's chunk is bytes [begin[m], begin[m + 1]) of buffer; own is
  /// filled.
  virtual Request start_all_gather(void* buffer, std::span<const int64_t> begin_bytes) = 0;
  /// In-place reduce-scatter: every rank holds values for all chunks (begin: [size + 1] floats);
  /// the own chunk becomes the sum, added in rank order in float32; the others stay as they are.
  /// staging: (size - 1) * own chunk floats, beside `buffer`; on a GPU all chunks together are
  /// enough where that is less. All three leave `begin` free at return and the buffers
  /// in use until wait; empty chunks are allowed.
  virtual Request start_reduce_scatter(float* buffer, std::span<const int64_t> begin,
                                       float* staging) = 0;
  virtual bool test(Request request) = 0;  // true when finished (then the handle is gone)
  virtual void wait(Request request) = 0;
  /// Moves everything outstanding on. Never throws: an error is kept and thrown by the next test(),
  /// wait() or start_*, so that kernels may call it in their loops.
  virtual void progress() = 0;

  /// Payload bytes this rank has sent in the three start_* operations, as a direct exchange sends:
  /// all-gather (size - 1) * own chunk; reduce-scatter all chunks but the own; all-reduce is the
  /// one after the other on size blocks: 2 (size - 1) / size * n * 4 where size divides n.
  int64_t bytes_sent() const { return bytes_sent_; }
  /// The share of the operation started last.
  int64_t last_bytes() const { return last_bytes_; }

 protected:
  // Checks the arguments of a start_* operation and counts its bytes; shared by the transports.
  void count_all_reduce(int64_t n);
  void count_all_gather(std::span<const int64_t> begin_bytes);
  void count_reduce_scatter(std::span<const int64_t> begin);

 private:
  void check_chunks(std::span<const int64_t> begin) const;
  int64_t bytes_sent_ = 0;
  int64_t last_bytes_ = 0;
};

/// Throws Error unless `view` lies where `communicator`'s operations work. name: for the message.
void check_on_device(const Communicator& communicator, const TensorView& view, const char* name);
/// A communicator of the same ranks for operations on `view`, which is checked first; null for one
/// rank. Collective.
std::unique_ptr<Communicator> same_ranks_for(Communicator& world, const TensorView& view,
                                             const char* name);

/// First element of block `index` when n elements are cut into `blocks` nearly equal ones; n at
/// index == blocks. The cut that all-reduce uses.
int64_t block_begin(int64_t n, int blocks, int index);

std::unique_ptr<Communicator> make_single_communicator();
/// rank p of P of a job that does not exist; collectives leave data as it is.
std::unique_ptr<Communicator> make_counting_communicator(int size, int rank);

/// From now on a wait of this process for other ranks in host memory (MPI) that takes longer throws
/// one line with rank, host, operation and the ranks that are missing; inside of MPI's own blocking
/// calls it prints that line and ends the process. 0: never. At the start it is the default of
/// parallel.timeout_s. Returns the old limit.
double set_host_timeout(double seconds);
/// While one lives, this process waits for ranks that may work alone for long (rank 0 saves a
/// checkpoint, builds a cache): waits may take kFactor times the limit.
class LoneWork {
 public:
  static constexpr int kFactor = 6;
  LoneWork();
  ~LoneWork();
  LoneWork(const LoneWork&) = delete;
  LoneWork& operator=(const LoneWork&) = delete;
};
/// To be called when the process is told to end (safe in a signal handler): a wait for other ranks
/// that goes on then says once, on standard error, what it waits for. A launcher that has lost a
/// rank tells the others in this way, a moment before it kills them.
void note_termination() noexcept;

/// MPI's life time: construct first thing in main (MPI_THREAD_FUNNELED). Without mpirun one rank;
/// under another MPI's mpirun it throws. The destructor finalises unless an exception is unwinding.
/// Set-up, end and what lies between wait for other ranks as set_host_timeout() says.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;
  /// Waits until all ranks have come to the end of their work; throws Error, which names those that
  /// have not, at the time limit. To be called before the destructor.
  void wait_for_all();
  /// Ends all ranks with this exit code; does not return.
  [[noreturn]] static void abort(int exit_code);
  static bool initialised();
};
/// All ranks of the job; needs an MpiSession. Collective. Destroy it before the session.
std::unique_ptr<Communicator> make_mpi_communicator();

}  // namespace longnet
