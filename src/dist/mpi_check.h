// Internal to src/dist: turns failed MPI calls into longnet::Error.
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

}  // namespace longnet::internal

#define LN_MPI(call) ::longnet::internal::check_mpi((call), #call, __FILE__, __LINE__)
