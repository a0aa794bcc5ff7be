// See agreement.h.
#include "train/agreement.h"

#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "core/failure.h"

namespace longnet {

void run_on_all(Communicator& world, const std::function<void()>& work) {
  std::string failure;
  try {
    work();
  } catch (const std::exception& error) {
    failure = failure_text(error);
  }
  const LoneWork others;  // may be at it for long, while this rank had little to do
  const std::vector<std::string> failures = world.all_gather_strings(failure);
  for (int rank = 0; rank < world.size(); ++rank) {
    if (failures[rank].empty()) continue;
    if (rank == world.rank()) throw AgreedError(failures[rank]);
    throw SilentError();
  }
}

void run_on_root(Communicator& world, const std::function<void()>& work) {
  run_on_all(world, [&] {
    if (world.rank() == 0) work();
  });
}

Mesh make_mesh_on_all(std::unique_ptr<Communicator> world, const ParallelConfig& parallel) {
  const int rank = world->rank();
  try {
    return make_mesh(std::move(world), parallel.sequence_ranks, parallel.data_ranks);
  } catch (const Error& error) {
    if (rank == 0) throw AgreedError(error.what());
    throw SilentError();
  }
}

}  // namespace longnet
