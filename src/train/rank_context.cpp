// See rank_context.h.
#include "train/rank_context.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "core/json.h"
#include "core/log.h"
#include "core/system.h"
#include "core/threads.h"
#include "train/agreement.h"
#include "train/backend.h"

namespace longnet {
namespace {

/// The ranks of one host together.
struct Host {
  int ranks = 0, threads = 0, most_threads = 0;
  std::set<int> cores;
  int quota = 0;
  bool bound = false;  // a rank has more threads than cores of its own

  void add(const RankThreads& rank) {
    ++ranks;
    threads += rank.threads;
    most_threads = std::max(most_threads, rank.threads);
    cores.insert(rank.cores.begin(), rank.cores.end());
    quota = rank.quota;
    bound = bound || rank.threads > static_cast<int>(rank.cores.size());
  }
  int usable() const {
    const int all = static_cast<int>(cores.size());
    return quota > 0 ? std::min(quota, all) : all;
  }
};

std::string counted(int n, const char* what) {
  return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s");
}

std::string remedy(const Host& host) {
  const int cores = host.usable();
  if (host.ranks > cores) return fmt::format("start at most {} there", counted(cores, "rank"));
  return fmt::format("set parallel.threads={} or OMP_NUM_THREADS={}{}", cores / host.ranks,
                     cores / host.ranks, host.ranks > 1 ? ", or start fewer ranks there" : "");
}

}  // namespace

Context make_context(Communicator& world, const std::string& backend, int threads) {
  const Device device = device_of_rank(world, backend);
  run_on_all(world, [&] { check_threads_start(thread_count(threads)); });
  return Context({.device = device, .threads = threads, .counting = false});
}

std::string crowded_message(const std::vector<RankThreads>& ranks) {
  std::vector<std::string> names;  // in the order of the ranks
  std::map<std::string, Host> hosts;
  for (const RankThreads& rank : ranks) {
    if (rank.cores.empty()) return "";
    if (!hosts.count(rank.host)) names.push_back(rank.host);
    hosts[rank.host].add(rank);
  }
  for (const std::string& name : names) {
    const Host& host = hosts[name];
    if (host.threads > host.usable())
      return fmt::format(
          "{}: {} with {} in total may use only {}: threads wait for each other and steps take "
          "longer; {}",
          name, counted(host.ranks, "rank"), counted(host.threads, "thread"),
          counted(host.usable(), "core"), remedy(host));
    if (host.bound)
      return fmt::format(
          "{}: the launcher binds a rank with {} to fewer cores; start with --bind-to none, as "
          "scripts/mpirun_local.sh does, or with fewer threads (OMP_NUM_THREADS)",
          name, counted(host.most_threads, "thread"));
  }
  return "";
}

void warn_if_crowded(Communicator& world, const Context& context) {
  if (context.on_gpu()) return;
  const nlohmann::json mine{host_name(), context.threads(), allowed_cores(), core_quota()};
  const std::vector<std::string> all = world.all_gather_strings(json_text(mine));
  if (world.rank() != 0) return;
  std::vector<RankThreads> ranks;
  for (const std::string& text : all) {
    const nlohmann::json rank = parse_json(text);
    ranks.push_back({rank[0].get<std::string>(), rank[1].get<int>(),
                     rank[2].get<std::vector<int>>(), rank[3].get<int>()});
  }
  if (const std::string message = crowded_message(ranks); !message.empty()) log_warn("{}", message);
}

}  // namespace longnet
