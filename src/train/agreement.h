// Work that may fail on some ranks, done so that all ranks end together with one message.
#pragma once

#include <functional>

#include "core/error.h"
#include "dist/communicator.h"

namespace longnet {

/// Thrown on the ranks that have nothing to say because a lower one has: exit without a line.
class SilentError : public Error {
 public:
  SilentError() : Error("another rank reports the error") {}
};

/// Every rank runs `work` (which must call no collective); if it throws anywhere, the lowest such
/// rank throws its error and all others SilentError. Collective.
void run_on_all(Communicator& world, const std::function<void()>& work);
/// The same where only rank 0 works.
void run_on_root(Communicator& world, const std::function<void()>& work);

}  // namespace longnet
