// See transfer_plan.h.
#include "dist/transfer_plan.h"

#include <fmt/format.h>

#include <algorithm>

namespace longnet::internal {

bool chunks_are_equal(std::span<const int64_t> begin) {
  for (size_t m = 2; m < begin.size(); ++m)
    if (begin[m] - begin[m - 1] != begin[1] - begin[0]) return false;
  return true;
}

bool direct_is_shorter(std::span<const int64_t> begin) {
  const auto size = static_cast<int64_t>(begin.size()) - 1;
  int64_t largest = 0;
  for (int64_t m = 0; m < size; ++m) largest = std::max(largest, begin[m + 1] - begin[m]);
  return (size - 1) * largest <= begin.back() - begin.front();
}

TransferPlan gather_plan(std::span<const int64_t> begin, int rank) {
  const int size = static_cast<int>(begin.size()) - 1;
  const auto chunk = [&](int member) { return begin[member + 1] - begin[member]; };
  TransferPlan plan;
  for (int i = 1; i < size; ++i) {
    const int to = (rank + i) % size, from = (rank - i + size) % size;
    if (chunk(rank) > 0) plan.sends.push_back({to, begin[rank], chunk(rank)});
    if (chunk(from) > 0) plan.receives.push_back({from, begin[from], chunk(from)});
  }
  return plan;
}

TransferPlan scatter_plan(std::span<const int64_t> begin, int rank) {
  const int size = static_cast<int>(begin.size()) - 1;
  const auto chunk = [&](int member) { return begin[member + 1] - begin[member]; };
  const int64_t own = chunk(rank);
  TransferPlan plan;
  for (int i = 1; i < size; ++i) {
    const int to = (rank + i) % size, from = (rank - i + size) % size;
    if (chunk(to) > 0) plan.sends.push_back({to, begin[to], chunk(to)});
    if (own > 0) plan.receives.push_back({from, own * (from < rank ? from : from - 1), own});
  }
  return plan;
}

void Watchdog::started(int64_t id, const char* name, double now) {
  running_.push_back({id, name, now});
}

void Watchdog::finished(int64_t id) {
  std::erase_if(running_, [&](const Running& r) { return r.id == id; });
}

std::optional<Watchdog::Overdue> Watchdog::overdue(double now) const {
  if (timeout_ <= 0) return std::nullopt;
  for (const Running& r : running_)
    if (now - r.since > timeout_) return Overdue{r.name, now - r.since, r.id};
  return std::nullopt;
}

std::string overdue_message(const Watchdog::Overdue& overdue, const std::string& where, int size,
                            const std::string& missing) {
  return fmt::format(
      "{}: {} in a group of {} ranks has not finished after {:.0f} s (parallel.timeout_s): {} is "
      "lost, stopped or busy; look at its log, or raise parallel.timeout_s (0: wait for ever)",
      where, overdue.name, size, overdue.seconds, missing);
}

}  // namespace longnet::internal
