// The mesh of sequence groups and data-parallel replicas. See mesh.h.
#include "dist/mesh.h"

namespace longnet {

Mesh make_mesh(std::unique_ptr<Communicator> world, int64_t sequence_ranks, int64_t data_ranks) {
  const int64_t size = world->size();
  int64_t sequence = sequence_ranks, data = data_ranks;
  if (sequence == 0) sequence = data > 0 ? size / data : size;
  if (data == 0) data = sequence > 0 ? size / sequence : 0;
  // The order of the tests keeps the product of two wild values from overflowing.
  if (sequence < 1 || data < 1 || sequence > size || data > size || sequence * data != size)
    throw Error(
        "parallel.sequence_ranks ({}) times parallel.data_ranks ({}) must be the job's {} ranks; "
        "start a multiple of data_ranks, with parallel.sequence_ranks=0 (all that data_ranks "
        "leaves) "
        "or the quotient",
        sequence_ranks, data_ranks, size);
  Mesh mesh;
  mesh.replica = static_cast<int>(world->rank() / sequence);
  mesh.replicas = static_cast<int>(data);
  const int place = static_cast<int>(world->rank() % sequence);
  mesh.sequence = world->split_known(static_cast<int>(sequence), place, mesh.replica, place);
  mesh.world = std::move(world);
  return mesh;
}

}  // namespace longnet
