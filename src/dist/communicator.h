// Communicator: a group of ranks and the collectives the trainer uses, over one transport.
//
// Transports: single (one rank, no library), mpi (CPU), counting (`longnet plan`: behaves like rank p
// of P, moves nothing, counts bytes). All ranks of a group call the same operations in the same
// order. Non-blocking operations move on in progress() and wait() only.
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
  virtual std::string transport() const = 0;  // "single", "mpi", "counting"

  /// Ranks with equal color form a group, ordered by key; color < 0: no group (null).
  virtual std::unique_ptr<Communicator> split(int64_t color, int64_t key) = 0;

  virtual void barrier() = 0;
  virtual void broadcast(void* data, int64_t bytes, int root) = 0;
  /// Sum in place over all ranks; the same bits on every rank.
  virtual void all_reduce_sum(std::span<double> values) = 0;
  virtual void all_reduce_sum(std::span<int64_t> values) = 0;
  virtual void all_reduce_max(std::span<double> values) = 0;
  /// One string per rank, on every rank.
  virtual std::vector<std::string> all_gather_strings(const std::string& mine) = 0;

  /// In-place sum of n floats over all ranks; same bits on every rank; memory untouched until wait.
  virtual Request start_all_reduce_sum(float* values, int64_t n) = 0;
  /// In-place all-gather: member m's chunk is bytes [begin[m], begin[m + 1]) of buffer; own is filled.
  virtual Request start_all_gather(void* buffer, std::span<const int64_t> begin_bytes) = 0;
  /// In-place reduce-scatter: every rank holds values for all chunks (begin: [size + 1] floats); the
  /// own chunk becomes the sum, added in rank order. staging: (size - 1) * own chunk floats.
  virtual Request start_reduce_scatter(float* buffer, std::span<const int64_t> begin,
                                       float* staging) = 0;
  virtual bool test(Request request) = 0;  // true when finished (then the handle is gone)
  virtual void wait(Request request) = 0;
  virtual void progress() = 0;

  /// Payload bytes this rank has sent in the three start_* operations, as a direct exchange or a
  /// ring moves them: all-gather (size - 1) * own chunk; reduce-scatter all chunks but the own;
  /// all-reduce 2 (size - 1) / size * n * 4. The last operation's bytes stand in last_bytes().
  virtual int64_t bytes_sent() const = 0;
};

std::unique_ptr<Communicator> make_single_communicator();
/// rank p of P of a job that does not exist; collectives leave data as it is.
std::unique_ptr<Communicator> make_counting_communicator(int size, int rank);

/// MPI's life time: construct first thing in main. Threads: MPI_THREAD_FUNNELED. Without mpirun it is
/// rank 0 of 1. The destructor finalises unless an exception is unwinding.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;
  /// Ends all ranks with this exit code; does not return.
  [[noreturn]] static void abort(int exit_code);
  static bool initialised();
};
/// All ranks of the job; needs an MpiSession.
std::unique_ptr<Communicator> make_mpi_communicator();

}  // namespace longnet
