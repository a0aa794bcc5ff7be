// Work that may fail on some ranks, done so that all ranks end together with one message.
#pragma once

#include <functional>

#include "core/config.h"
#include "core/error.h"
#include "dist/mesh.h"

namespace longnet {

/// An error that every rank knows of: all end by themselves, none waits for another.
class AgreedError : public Error {
 public:
  using Error::Error;
};

/// Thrown on the ranks that have nothing to say because a lower one has: exit without a line.
class SilentError : public AgreedError {
 public:
  SilentError() : AgreedError("another rank reports the error") {}
};

/// Every rank runs `work` (which must call no collective); if it throws anywhere, the lowest such
/// rank throws its error as AgreedError and all others SilentError. Collective.
void run_on_all(Communicator& world, const std::function<void()>& work);
/// The same where only rank 0 works.
void run_on_root(Communicator& world, const std::function<void()>& work);
/// make_mesh, whose refusal is the same on every rank: rank 0 alone says it. Collective.
Mesh make_mesh_on_all(std::unique_ptr<Communicator> world, const ParallelConfig& parallel);

}  // namespace longnet
