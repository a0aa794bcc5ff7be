// What the transports share: argument checks, byte counts, the cut of an all-reduce into blocks.
#include "dist/communicator.h"

#include <algorithm>

#include "core/byte_count.h"

namespace longnet {

int64_t block_begin(int64_t n, int blocks, int index) {
  // n / blocks elements each, one more in the first n mod blocks: no product of n.
  return n / blocks * index + std::min<int64_t>(index, n % blocks);
}

void check_on_device(const Communicator& communicator, const TensorView& view, const char* name) {
  if (communicator.transport() == "counting" || communicator.transport() == "single" ||
      view.device == communicator.device())
    return;
  throw Error("{} {} lies on {}, the {} transport works on {}", name, view.describe(),
              device_name(view.device), communicator.transport(),
              device_name(communicator.device()));
}

std::unique_ptr<Communicator> same_ranks_for(Communicator& world, const TensorView& view,
                                             const char* name) {
  if (world.size() == 1) return nullptr;
  check_on_device(world, view, name);
  return world.split_known(world.size(), world.rank(), 0, world.rank());
}

std::unique_ptr<Communicator> Communicator::split_known(int group_size, int group_rank,
                                                        int64_t color, int64_t key) {
  std::unique_ptr<Communicator> group = split(color, key);
  if (group)
    LN_CHECK(group->size() == group_size && group->rank() == group_rank,
             "group {} came out as rank {} of {}, planned was rank {} of {}: the ranks disagree "
             "about the plan",
             color, group->rank(), group->size(), group_rank, group_size);
  return group;
}

void Communicator::check_chunks(std::span<const int64_t> begin) const {
  LN_CHECK(static_cast<int64_t>(begin.size()) == size() + 1, "{} chunk limits for {} ranks",
           begin.size(), size());
  for (size_t i = 1; i < begin.size(); ++i)
    LN_CHECK(begin[i - 1] >= 0 && begin[i - 1] <= begin[i], "chunk {} is [{}, {})", i - 1,
             begin[i - 1], begin[i]);
}

void Communicator::count_all_reduce(int64_t n) {
  LN_CHECK(n >= 0, "all-reduce of {} values", n);
  const int64_t own = block_begin(n, size(), rank() + 1) - block_begin(n, size(), rank());
  count_sent(checked_product(sizeof(float), n - own + (size() - 1) * own, "bytes sent"));
}

void Communicator::count_sent(int64_t bytes) {
  last_bytes_ = bytes;
  bytes_sent_ = checked_sum(bytes_sent_, bytes, "bytes sent");
}

void Communicator::count_all_gather(std::span<const int64_t> begin_bytes) {
  check_chunks(begin_bytes);
  count_all_gather(begin_bytes[rank() + 1] - begin_bytes[rank()]);
}

void Communicator::count_reduce_scatter(std::span<const int64_t> begin) {
  check_chunks(begin);
  count_reduce_scatter(begin.back() - begin.front(), begin[rank() + 1] - begin[rank()]);
}

void Communicator::count_all_gather(int64_t own) {
  LN_CHECK(own >= 0, "a chunk of {} bytes", own);
  count_sent(checked_product(size() - 1, own, "bytes sent"));
}

void Communicator::count_reduce_scatter(int64_t all, int64_t own) {
  LN_CHECK(own >= 0 && all >= own, "a chunk of {} of {} floats", own, all);
  count_sent(checked_product(sizeof(float), all - own, "bytes sent"));
}

}  // namespace longnet
