// Internal to src/dist: turns failed MPI calls into longnet::Error, and the message size limit.
//
// The communicators use MPI_ERRORS_RETURN, so a failed call comes back as a code; the message then
// carries MPI's text, the operation, this rank and its host. A lost rank ends the job by mpirun.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <string>

namespace longnet::internal {

/// Throws Error unless code is MPI_SUCCESS. call: the failed statement or operation.
void check_mpi(int code, const char* call, const char* file, int line);

/// "rank 3 on n1", for messages.
std::string rank_and_host();

/// Bytes of the largest single MPI message: MPI counts are int, larger transfers go in pieces.
int64_t mpi_message_bytes();
/// Lowers it (tests), on all ranks alike and with nothing outstanding; at most 2^30. Returns the
/// old limit.
int64_t set_mpi_message_bytes(int64_t bytes);

/// One wait of the host for other ranks; ask again() in its loop. name, size: the operation and its
/// group, for messages.
class HostWait {
 public:
  HostWait(const char* name, int size);
  /// Lets others run, calls the hook, and throws when the wait is longer than set_host_timeout().
  void again();

 private:
  const char* name_;
  int size_;
  int64_t key_;
  double begin_;
};
/// Called by every HostWait, may throw; null: nothing. The nccl transport looks for its own errors.
void set_wait_hook(void (*hook)());
/// Says once what is waited for if the process has been told to end (note_termination) and still
/// waits for the same thing a third of a second later. key: tells one wait from another.
void say_if_told_to_end(int64_t key, const char* name, int size);

}  // namespace longnet::internal

#define LN_MPI(call) ::longnet::internal::check_mpi((call), #call, __FILE__, __LINE__)
