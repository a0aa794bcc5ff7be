// Internal to src/dist: turns failed MPI calls into longnet::Error, and the message size limit.
//
// The communicators use MPI_ERRORS_RETURN, so a failed call comes back as a code; the message then
// carries MPI's text, the operation, this rank and its host. A lost rank ends the job by mpirun.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <string>

#include "dist/host_wait.h"

namespace longnet::internal {

/// Throws Error unless code is MPI_SUCCESS. call: the failed statement or operation.
void check_mpi(int code, const char* call, const char* file, int line);

/// Bytes of the largest single MPI message: MPI counts are int, larger transfers go in pieces.
int64_t mpi_message_bytes();
/// Lowers it (tests), on all ranks alike and with nothing outstanding; at most 2^30. Returns the
/// old limit.
int64_t set_mpi_message_bytes(int64_t bytes);

}  // namespace longnet::internal

#define LN_MPI(call) ::longnet::internal::check_mpi((call), #call, __FILE__, __LINE__)
