// The exchange of gathered keys and values over a sequence group. See mesh.h.
//
// Straddling segments of one branch are numbered in order; those of one parity share no rank, so
// one split by parity gives every segment a communicator. It computes nothing but the owner's sums.
#include <array>
#include <exception>
#include <memory>
#include <vector>

#include "core/arena.h"
#include "core/byte_count.h"
#include "dist/mesh.h"

namespace longnet {
namespace {

void add_traffic(int64_t& total, int64_t bytes) {
  total = checked_sum(total, bytes, "keys and values sent in a step");
}

}  // namespace

struct SequenceExchange::Impl {
  /// A gathered segment of this rank.
  struct Slot {
    Slot(std::unique_ptr<Communicator> group_in, GatherLayout layout_in)
        : group(std::move(group_in)), layout(std::move(layout_in)) {}
    std::unique_ptr<Communicator> group;
    GatherLayout layout;
    std::vector<int64_t> begin;  // [ranks + 1] chunk_begin of all; empty where bytes are counted
    float* staging = nullptr;    // [ranks - 1][own chunk]
    Communicator::Request gather = 0;
    Communicator::Request reduce = 0;
    bool gathering = false;
    bool reducing = false;
    std::vector<int64_t> begin_bytes;  // scratch of start_gather
  };

  Impl(Communicator& sequence, const SequencePlan& plan, int64_t batch, int64_t head_dim)
      : sequence_(sequence),
        counting_(sequence.transport() == "counting"),
        staging_(std::make_unique<Arena>("exchange staging", counting_, sequence.device())) {
    LN_CHECK(sequence.size() == plan.ranks() && sequence.rank() == plan.rank(),
             "the plan is rank {} of {}, the sequence group rank {} of {}", plan.rank(),
             plan.ranks(), sequence.rank(), sequence.size());
    const int branches = static_cast<int>(plan.branches().size());
    slots_.resize(branches);
    for (int branch = 0; branch < branches; ++branch) {
      const int64_t straddling = plan.straddling_segments(branch);
      const std::vector<GatheredSegment> mine = plan.gathered_segments(branch);
      // Collective: every rank splits in this order, also where it takes part in neither group.
      for (int64_t parity = 0; parity < std::min<int64_t>(2, straddling); ++parity) {
        int which = -1;
        for (size_t i = 0; i < mine.size(); ++i)
          if (mine[i].number % 2 == parity) which = static_cast<int>(i);
        if (which < 0) {
          sequence.split_known(0, 0, -1, plan.rank());
          continue;
        }
        const GatheredSegment& segment = mine[which];
        auto slot = std::make_unique<Slot>(
            sequence.split_known(segment.ranks(), plan.rank() - segment.first_rank, segment.number,
                                 plan.rank()),
            GatherLayout(plan, branch, segment, batch, head_dim));
        const int64_t own = slot->layout.chunk_elements(slot->layout.mine);
        if (!counting())
          for (int member = 0; member <= segment.ranks(); ++member)
            slot->begin.push_back(slot->layout.chunk_begin(member));
        slot->staging = static_cast<float*>(staging_->allocate_bytes(
            (segment.ranks() - 1) * own * static_cast<int64_t>(sizeof(float))));
        slots_[branch][which] = std::move(slot);
      }
    }
  }

  ~Impl() {
    // While an exception unwinds, messages may still arrive: their memory must outlive this.
    if (std::uncaught_exceptions() > 0) staging_.release();
  }

  bool counting() const { return counting_; }

  Slot& slot(int branch, int which) {
    LN_CHECK(branch >= 0 && branch < static_cast<int>(slots_.size()) && which >= 0 && which < 2 &&
                 slots_[branch][which] != nullptr,
             "branch {} has no gathered segment {} on rank {}", branch, which, sequence_.rank());
    return *slots_[branch][which];
  }

  Communicator& sequence_;
  bool counting_;
  std::unique_ptr<Arena> staging_;
  std::vector<std::array<std::unique_ptr<Slot>, 2>> slots_;  // [branches][which]
  Traffic traffic_;
};

SequenceExchange::SequenceExchange(Communicator& sequence, const SequencePlan& plan, int64_t batch,
                                   int64_t head_dim)
    : impl_(std::make_unique<Impl>(sequence, plan, batch, head_dim)) {}
SequenceExchange::~SequenceExchange() = default;

void SequenceExchange::start_gather(int branch, int which, const TensorView& buffer) {
  Impl::Slot& slot = impl_->slot(branch, which);
  LN_CHECK(!slot.gathering, "branch {} segment {} is already gathering", branch, which);
  LN_CHECK(buffer.elements() == slot.layout.elements() && buffer.contiguous(),
           "gather buffer {} for {} elements", buffer.describe(), slot.layout.elements());
  check_on_device(*slot.group, buffer, "gather buffer");
  const int64_t own = slot.layout.chunk_elements(slot.layout.mine) * dtype_size(buffer.dtype);
  if (impl_->counting()) {
    slot.group->count_all_gather(own);
  } else {
    slot.begin_bytes.clear();
    for (int64_t begin : slot.begin) slot.begin_bytes.push_back(begin * dtype_size(buffer.dtype));
    slot.gather = slot.group->start_all_gather(buffer.data, slot.begin_bytes);
  }
  slot.gathering = true;
  add_traffic(impl_->traffic_.forward_bytes, slot.group->last_bytes());
  // Causal queries that may look at this rank's rows are its own and those of the ranks after it.
  add_traffic(impl_->traffic_.forward_needed_bytes,
              own * (slot.group->size() - 1 - slot.layout.mine));  // at most as many as above
}

void SequenceExchange::wait_gather(int branch, int which) {
  Impl::Slot& slot = impl_->slot(branch, which);
  LN_CHECK(slot.gathering, "branch {} segment {} is not gathering", branch, which);
  slot.group->wait(slot.gather);
  slot.gathering = false;
}

void SequenceExchange::start_reduce(int branch, int which, const TensorView& buffer) {
  Impl::Slot& slot = impl_->slot(branch, which);
  LN_CHECK(!slot.reducing, "branch {} segment {} is already reducing", branch, which);
  LN_CHECK(buffer.dtype == DType::kF32 && buffer.elements() == slot.layout.elements() &&
               buffer.contiguous(),
           "reduce buffer {} for {} f32 elements", buffer.describe(), slot.layout.elements());
  check_on_device(*slot.group, buffer, "reduce buffer");
  if (impl_->counting())
    slot.group->count_reduce_scatter(slot.layout.elements(),
                                     slot.layout.chunk_elements(slot.layout.mine));
  else
    slot.reduce = slot.group->start_reduce_scatter(static_cast<float*>(buffer.data), slot.begin,
                                                   slot.staging);
  slot.reducing = true;
  add_traffic(impl_->traffic_.backward_bytes, slot.group->last_bytes());
}

void SequenceExchange::wait_reduce(int branch, int which) {
  Impl::Slot& slot = impl_->slot(branch, which);
  LN_CHECK(slot.reducing, "branch {} segment {} is not reducing", branch, which);
  slot.group->wait(slot.reduce);
  slot.reducing = false;
}

void SequenceExchange::progress() { impl_->sequence_.progress(); }
const Traffic& SequenceExchange::traffic() const { return impl_->traffic_; }
int64_t SequenceExchange::staging_bytes() const { return impl_->staging_->bytes(); }

}  // namespace longnet
