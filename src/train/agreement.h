// Work that may fail on some ranks, arranged so that all ranks end together with one message.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/error.h"
#include "dist/mesh.h"

namespace longnet {

/// An error that every rank knows: each rank ends by itself and none waits for another.
class AgreedError : public Error {
 public:
  using Error::Error;
};

/// Thrown on ranks whose error a lower rank already reports: exit without a message.
class SilentError : public AgreedError {
 public:
  SilentError() : AgreedError("another rank reports the error") {}
};

/// Runs `work` on every rank. It must not call a collective, unless no rank can fail between two. If it throws anywhere, the lowest
/// such rank throws its error as AgreedError and all others throw SilentError. Collective.
void run_on_all(Communicator& world, const std::function<void()>& work);
/// Runs `work` on rank 0 only; errors as run_on_all(). Collective.
void run_on_root(Communicator& world, const std::function<void()>& work);
/// Throws Error naming the first rank and line that differ from rank 0's, as where hosts have copies
/// of their own of a file. what: whose lines they are, "the configuration". Collective.
void check_same_on_all(Communicator& world, const std::string& what,
                       const std::vector<std::string>& lines);
/// make_mesh(), whose error is the same on every rank; only rank 0 reports it. Collective.
Mesh make_mesh_on_all(std::unique_ptr<Communicator> world, const ParallelConfig& parallel);

}  // namespace longnet
