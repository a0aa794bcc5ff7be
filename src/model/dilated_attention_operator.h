// The distributed dilated-attention operator on q, k, v: all branches, merged, forward and
// backward.
//
// The model's layers, the DilatedAttention module and `longnet attend` share it. Segments inside
// this rank are computed from the local rows. For segments that straddle ranks, it packs this
// rank's kept rows, starts the KeyValueExchange's gather of the others, computes the local segments
// meanwhile, then attends to the gathered rows. The backward mirrors this: gathered segments first;
// their gradients travel to their owners while the local segments are computed. It has no
// parameters and no projections.
#pragma once

#include <vector>

#include "core/arena.h"
#include "core/key_value_exchange.h"
#include "core/sequence_plan.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/segment_tasks.h"
#include "kernels/rotary/rotary.h"

namespace longnet {

struct DilatedAttentionSettings {
  int64_t head_dim = 64;  // D
  bool causal = true;
  RotaryOptions rotary;
  double scale = 0;           // of q k^T; 0: D^-1/2
  bool training = true;       // memory for the backward is taken
  DType dtype = DType::kF32;  // of queries, keys and values, f32 or bf16; their gradients are f32
};

/// q, k, v (f32 or bf16) or their gradients (f32): [B, L, H, D] each; rows may be strided (views of
/// a fused buffer).
struct QueryKeyValue {
  TensorView query, key, value;
};

/// Optional visibility limits of local query tokens, [B, L] i64 global token numbers; see
/// AttentionOptions.
struct Visibility {
  TensorView first_visible, last_visible;
};

/// The attention that a block calls: the operator below, or generation's cached one.
class AttentionOperator {
 public:
  /// What one layer keeps between calls.
  struct Saved {
    int64_t layer = 0;                 // which make_saved call it came from, from 0
    std::vector<TensorView> gathered;  // per gathered segment, GatherLayout::elements()
  };
  virtual ~AttentionOperator() = default;

  /// Buffers of one layer, from `activations`.
  virtual Saved make_saved(Arena& activations) = 0;
  /// out [B, L, H, D] f32 and lse [B, H, L] f32 (nats; -inf where no branch keeps the query).
  virtual void forward(const TensorView& out, const TensorView& lse, const QueryKeyValue& inputs,
                       Saved& saved, const Visibility& visibility) = 0;
  /// Repeats the forward with the same bits and without communication: saved holds every rank's
  /// rows.
  virtual void recompute(const TensorView& out, const TensorView& lse, const QueryKeyValue& inputs,
                         const Saved& saved, const Visibility& visibility) = 0;
  /// Writes the gradients. grad_out: f32 or bf16. out, lse, inputs, saved: those of the forward.
  virtual void backward(const QueryKeyValue& gradients, const TensorView& grad_out,
                        const TensorView& out, const TensorView& lse, const QueryKeyValue& inputs,
                        Saved& saved, const Visibility& visibility) = 0;
};

class DilatedAttentionOperator final : public AttentionOperator {
 public:
  /// batch: B. workspace: scratch is allocated from it once. context, exchange: must outlive this.
  DilatedAttentionOperator(Context& context, const SequencePlan& plan, int64_t batch,
                           const DilatedAttentionSettings& settings, KeyValueExchange& exchange,
                           Arena& workspace);

  Saved make_saved(Arena& activations) override;
  void forward(const TensorView& out, const TensorView& lse, const QueryKeyValue& inputs,
               Saved& saved, const Visibility& visibility = {}) override;
  void recompute(const TensorView& out, const TensorView& lse, const QueryKeyValue& inputs,
                 const Saved& saved, const Visibility& visibility = {}) override;
  void backward(const QueryKeyValue& gradients, const TensorView& grad_out, const TensorView& out,
                const TensorView& lse, const QueryKeyValue& inputs, Saved& saved,
                const Visibility& visibility = {}) override;

  const SequencePlan& plan() const { return plan_; }

 private:
  struct GatheredWork {
    int branch = 0;
    int which = 0;
    int64_t number = 0;
    GatherLayout layout;
    GatheredTask task;  // its queries are this rank's kept tokens, and its own keys as well
    std::vector<int64_t> own_slot;        // [H] first row of a head in the own chunk
    int64_t own_begin = 0, own_rows = 0;  // of the own chunk, in elements and rows
  };
  /// A plan on a CPU: one task per class of segments and one source for all ranks are enough. A
  /// GPU's scratch depends on all of them.
  bool counts_only() const { return context_.counting() && !context_.on_gpu(); }
  void list_local(int branch);
  template <typename Call>
  void for_local(size_t branch, const Call& call);
  void attend_local(const TensorView& out, const TensorView& lse, const QueryKeyValue& inputs,
                    const Visibility& visibility);
  void attend_gathered(size_t index, const TensorView& out, const TensorView& lse,
                       const TensorView& query, const Saved& saved, const Visibility& visibility);
  AttentionOptions options(int branch, const Visibility& visibility) const;
  TensorView own_part(const GatheredWork& work, const TensorView& buffer, int64_t part) const;

  Context& context_;
  SequencePlan plan_;
  int64_t batch_;
  DilatedAttentionSettings settings_;
  KeyValueExchange& exchange_;
  RotaryTable rotary_;
  std::vector<std::vector<int64_t>> head_offsets_;     // [K][H]
  std::vector<std::vector<SegmentTask>> local_tasks_;  // [K]; tensors are bound in each call
  std::vector<std::vector<int64_t>> copies_;           // [K][tasks], see list_local
  std::vector<GatheredWork> gathered_;  // in the order in which transfers are issued on every rank
  std::vector<TensorView> grad_buffers_;
  int64_t layers_ = 0;  // make_saved calls
  TensorView delta_;    // [B, H, L]
  void* workspace_ = nullptr;
};

}  // namespace longnet
