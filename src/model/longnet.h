// LongNet on one rank's tokens: embedding, blocks, final norm, loss; forward and exact backward.
//
// Single-rank mathematics: data of other ranks enters only through the KeyValueExchange. T = B L
// local tokens. Parameters and gradients are flat float32 buffers (ParameterLayout). With a bf16
// copy of the parameters, the matrix products and activations are bf16; the residual stream, logits
// and all sums stay float32. All memory is allocated at construction; a call allocates nothing.
// With a counting Context and counting arenas it computes nothing and measures memory, FLOPs and
// traffic (`longnet plan`).
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "core/arena.h"
#include "core/config.h"
#include "core/context.h"
#include "core/key_value_exchange.h"
#include "core/sequence_plan.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "model/layers.h"
#include "model/parameters.h"

namespace longnet {

/// The arenas that a model allocates from, by purpose.
struct ModelArenas {
  Arena& activations;  // what the forward keeps for the backward, which may write over it
  Arena& workspace;    // scratch, gradients of activations, gathered gradients, logits of a chunk:
                       // nothing that must live on from a forward to its backward
};

struct LongNetOptions {
  /// All layers use it instead of an operator of the model's own (generation); must outlive the
  /// model.
  AttentionOperator* attention = nullptr;
  /// Keeps only each block's input and the gathered rows; the backward repeats each block's
  /// forward, without communication. Same bits. Has no effect without gradients.
  bool recompute = false;
  /// With recompute: feed-forward layers with more rows than this work in parts of at most this
  /// size, and their activations and gradients exist for one part at a time. The forward keeps its
  /// bits; weight gradients are summed part by part, equal up to rounding.
  int64_t recompute_rows = 65536;
  /// bf16 copy of the parameters, kept up to date by the caller: linear layers and the embedding
  /// read it, and activations are bf16. Undefined: they read the parameters themselves, all f32.
  TensorView matrices{};
};

class LongNet {
 public:
  /// Called after each part of the backward: elements [begin, end) of the gradient buffer are final
  /// on this rank. Ranges come in order, front to back.
  using GradientsReady = std::function<void(const ParameterRange&)>;

  /// parameters: [layout.elements()] f32. gradients: the same, or undefined (no backward). batch:
  /// B. plan: which tokens are local. exchange, context, arenas: must outlive this.
  LongNet(Context& context, const ModelConfig& config, const SequencePlan& plan, int64_t batch,
          const ParameterLayout& layout, const TensorView& parameters, const TensorView& gradients,
          KeyValueExchange& exchange, const ModelArenas& arenas,
          const LongNetOptions& options = {});

  ~LongNet();

  /// Everything up to the final norm. tokens: [B, L] i64, each in [0, V).
  void forward(const TensorView& tokens, const Visibility& visibility = {});
  /// forward() from vectors [B, L, C] f32 instead of embedded tokens.
  void forward_vectors(const TensorView& vectors, const Visibility& visibility = {});

  /// After forward: summed loss of this rank's targets [B, L] i64 (-1: ignored), nats.
  CrossEntropyResult loss(const TensorView& targets);
  /// After forward: the loss, and the whole backward of loss * scale. Adds gradients to the flat
  /// buffer. Waits at the end, for the loss. Overwrites what the forward kept: until the next
  /// forward, another loss, backward, logits or hidden throws Error. scale: usually 1 / (targets of
  /// all ranks and micro-steps). grad_vectors: [B, L, C], written; only after forward_vectors,
  /// otherwise undefined.
  CrossEntropyResult loss_and_backward(const TensorView& targets, double scale,
                                       const GradientsReady& ready = {},
                                       const TensorView& grad_vectors = {});
  /// The backward from the gradient of hidden(), [T, C] f32, for other losses.
  void backward_hidden(const TensorView& grad_hidden, const GradientsReady& ready = {},
                       const TensorView& grad_vectors = {});

  /// [T, C] output of the final norm after forward, in the activations' type.
  const TensorView& hidden() const;
  /// logits [c, V] of hidden rows [begin, begin + c).
  void logits(const TensorView& out, int64_t begin);
  /// Queries, keys, values of a layer after forward, before positions: [B, L, H, D]. Not available
  /// if the model recomputes.
  QueryKeyValue attended_inputs(int64_t layer) const;

  int64_t rows() const { return rows_; }

 private:
  /// What a block's forward keeps for its backward besides its input; shared by all blocks of a
  /// model that recomputes.
  struct BlockActivations {
    TensorView input_mean, input_rstd, normed_input;     // [T], [T], [T, C]
    TensorView middle;                                   // [T, C] f32 after attention (sequential)
    TensorView middle_mean, middle_rstd, normed_middle;  // [T], [T], [T, C] (sequential)
    AttentionActivations attention;
    FeedForwardActivations feed_forward;
    /// middle, normed_middle: memory to use for them, if defined.
    BlockActivations(const ModelConfig& config, int64_t batch, int64_t local_tokens,
                     int64_t feed_forward_rows, DType dtype, const TensorView& middle,
                     const TensorView& normed_middle, Arena& activations);
  };
  struct Block {
    TensorView attention_norm_weight, attention_norm_bias, grad_attention_norm_weight,
        grad_attention_norm_bias;
    TensorView ffn_norm_weight, ffn_norm_bias, grad_ffn_norm_weight, grad_ffn_norm_bias;
    TensorView input;  // [T, C] f32 residual stream at the block's start
    std::shared_ptr<BlockActivations> kept;
    std::unique_ptr<AttentionLayer> attention;
    std::unique_ptr<FeedForwardLayer> feed_forward;
  };

  void place_shared_buffers(bool training, Arena& activations);
  void check_forward(const char* what) const;
  void run_blocks(const Visibility& visibility);
  void norm_forward(const TensorView& out, const TensorView& sum, const TensorView& mean,
                    const TensorView& rstd, const TensorView& x, const TensorView& residual,
                    const TensorView& weight, const TensorView& bias);
  void recompute_block(int64_t layer);
  const TensorView& stream_gradient();
  void backward_blocks(const GradientsReady& ready, const TensorView& grad_vectors);
  void chunked_loss(const TensorView& targets, double scale, bool with_gradient);
  CrossEntropyResult loss_result();

  Context& context_;
  ModelConfig config_;
  int64_t batch_, local_tokens_, rows_;
  bool sequential_, recompute_;
  float eps_;
  DType dtype_;  // of activations
  KeyValueExchange& exchange_;
  std::unique_ptr<AttentionOperator> own_attention_;
  std::unique_ptr<LayerScratch> scratch_;
  std::vector<Block> blocks_;
  int64_t activations_of_ = -1;  // with recompute: the layer whose activations are in memory
  bool forward_kept_ = false;    // what the last forward left is still there
  ParameterRange head_range_, embedding_range_;
  std::vector<ParameterRange> layer_ranges_;
  TensorView embedding_, grad_embedding_;          // [V, C]
  TensorView output_weight_, grad_output_weight_;  // [V, C]; the embedding when tied
  TensorView final_weight_, final_bias_, grad_final_weight_, grad_final_bias_;
  // f32, except hidden_ and those that say otherwise.
  TensorView embedded_;    // [T, C] the stream's start: the first block's input
  TensorView branch_out_;  // [T, C] what a half adds to the stream
  TensorView final_sum_, final_mean_, final_rstd_;  // [T, C], [T], [T]
  TensorView hidden_;                               // [T, C] of the activations' type
  TensorView middle_, normed_middle_;               // of all blocks, where they share one place
  TensorView grad_qkv_;                             // [T, 3 C]; what a forward leaves lies in it
  TensorView grad_stream_;                          // [T, C]
  TensorView grad_normed_;                          // [T, C]; lies over branch_out_
  void* loss_sums_ = nullptr;                       // of cross_entropy
  void* embedding_workspace_ = nullptr;             // of the embedding's backward
  TensorView rounded_grad_stream_;  // [T, C] bf16, over hidden_; not defined with f32
  TensorView chunk_logits_;         // [c, V]; on a GPU rows lie apart (logit_row_elements)
  TensorView rounded_chunk_grad_;   // [c, V] bf16, likewise; not defined with f32
  TensorView tokens_;               // of the last forward; not defined for vectors
  Visibility visibility_;           // of the last forward
};

}  // namespace longnet
