// Internal to src/dist: turns failed MPI calls into longnet::Error; and the limit on message sizes.
//
// The communicators use MPI_ERRORS_RETURN, so a failed call returns a code; the message carries
// MPI's text, the operation, this rank and its host. If a rank is lost, mpirun ends the job.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <string>

#include "dist/host_wait.h"

namespace longnet::internal {

/// Throws Error unless code is MPI_SUCCESS. call: the failed statement or operation.
void check_mpi(int code, const char* call, const char* file, int line);

/// Size of the largest single MPI message in bytes: MPI counts are int, so larger transfers go in
/// pieces.
int64_t mpi_message_bytes();
/// Lowers it (for tests), equally on all ranks and with nothing outstanding; at most 2^30. Returns
/// the old limit.
int64_t set_mpi_message_bytes(int64_t bytes);

}  // namespace longnet::internal

#define LN_MPI(call) ::longnet::internal::check_mpi((call), #call, __FILE__, __LINE__)
