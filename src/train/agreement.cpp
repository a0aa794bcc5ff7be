// See agreement.h.
#include "train/agreement.h"

#include <algorithm>
#include <exception>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/failure.h"
#include "core/system.h"
#include "core/text.h"
#include "data/content_hash.h"

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

void check_same_on_all(Communicator& world, const std::string& what,
                       const std::vector<std::string>& lines) {
  if (world.size() == 1) return;
  const std::string text = fmt::format("{}", fmt::join(lines, "\n"));
  ContentHash hash;  // short, for thousands of ranks
  for (const unsigned char c : text) hash.add(c);
  const std::vector<std::string> hashes = world.all_gather_strings(hash.text());
  if (std::all_of(hashes.begin(), hashes.end(), [&](const auto& h) { return h == hashes[0]; }))
    return;
  const std::vector<std::string> hosts = world.all_gather_strings(host_name());
  const std::vector<std::string> texts = world.all_gather_strings(text);
  const auto line = [&](int rank, size_t number) {
    std::istringstream in(texts[rank]);
    std::string found;
    for (size_t i = 0; i <= number; ++i)
      if (!std::getline(in, found)) return std::string();
    return found;
  };
  run_on_root(world, [&] {
    for (int rank = 1; rank < world.size(); ++rank)
      for (size_t number = 0; hashes[rank] != hashes[0]; ++number)
        if (const std::string theirs = line(rank, number), ours = line(0, number); theirs != ours)
          throw Error("{}: rank {} on {} has {}, rank 0 on {} has {}; give all ranks the same",
                      what, rank, hosts[rank], one_line(theirs), hosts[0], one_line(ours));
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
