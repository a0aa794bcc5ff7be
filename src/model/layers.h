// The two halves of a LongNet block, each with its forward and exact backward on one rank's tokens:
// AttentionLayer (qkv, per-head norms, dilated attention, sub-norm, output projection) and
// FeedForwardLayer (fc1 [and gate], activation + sub-norm, fc2).
//
// T = B L rows. A layer owns no weights (it views the flat parameter and gradient buffers) and no
// activations: the caller provides memory for them, either per layer or shared by layers, whose
// backwards then begin with recompute(). A backward overwrites activations that it no longer needs,
// so each backward needs its own forward or recompute(). The caller applies the norm before a layer
// and the residual addition after it. With bf16 matrices the operands of every product are bf16;
// the merged attention, statistics, sums of gradients and the layer's addition to the residual
// stream are f32.
#pragma once

#include <string>

#include "core/arena.h"
#include "core/config.h"
#include "kernels/activation/activation.h"
#include "model/dilated_attention_operator.h"
#include "model/parameters.h"

namespace longnet {

/// The position settings of a model.
RotaryOptions rotary_options(const ModelConfig& config);

/// A model's flat buffers, all laid out by one ParameterLayout.
struct FlatBuffers {
  TensorView parameters;  // f32; norms read these
  TensorView matrices;  // the same numbers, f32 or bf16: what linear layers and the embedding read,
                        // biases included; its type is the activations'
  TensorView gradients;  // f32; not defined: no backward
};

/// Scratch shared by all layers of a model, large enough for the widest.
struct LayerScratch {
  TensorView grad_hidden;     // [R, F or 2 F] feed-forward; not defined without training
  TensorView grad_activated;  // [R, F]
  TensorView grad_qkv;        // [T, 3 C] f32, the caller's: memory that is free while
                              // AttentionLayer::backward runs
  TensorView grad_attended;   // [T, C]; only where AttentionActivations::out_input is not defined
  void* reduction = nullptr;  // weight gradients of norms
  /// Allocates from `workspace`. rows: T; feed_forward_rows: R, see FeedForwardActivations; dtype:
  /// of activations; training: include the backward's part.
  LayerScratch(Context& context, const ModelConfig& config, int64_t rows, int64_t feed_forward_rows,
               DType dtype, bool training, const TensorView& grad_qkv, Arena& workspace);
};

/// While it exists, FLOPs count as recomputed (Work::recomputed_flops).
class CountsAsRecomputed {
 public:
  explicit CountsAsRecomputed(Context& context) : context_(context), before_(context.work()) {}
  ~CountsAsRecomputed();
  CountsAsRecomputed(const CountsAsRecomputed&) = delete;
  CountsAsRecomputed& operator=(const CountsAsRecomputed&) = delete;

 private:
  Context& context_;
  Work before_;
};

/// What an AttentionLayer's forward keeps for its backward, besides the gathered rows. Statistics
/// and merged attention are f32, the others have the given type. The backward writes the gradient
/// of attended over out_input, and with bf16 the rounded gradient of qkv over qkv.
struct AttentionActivations {
  TensorView qkv;                           // [T, 3 C]
  TensorView query_mean, query_rstd;        // [T, H] f32, with qk_norm
  TensorView key_mean, key_rstd;            // [T, H] f32, with qk_norm
  TensorView normed_qk;                     // [T, 2 C], with qk_norm
  TensorView attended;                      // [T, C] f32
  TensorView lse;                           // [B, H, L] f32
  TensorView attended_mean, attended_rstd;  // [T] f32, with sub_ln
  TensorView out_input;  // [T, C] of out_proj: with sub_ln the norm's output; else with bf16
                         // attended rounded; else not defined (attended itself)
  AttentionActivations(const ModelConfig& config, int64_t batch, int64_t local_tokens, DType dtype,
                       Arena& activations);
};

/// What a FeedForwardLayer's forward keeps for its backward. R: rows that the layer processes at a
/// time. With R < T it processes the rows in parts and keeps only the last part's activations; the
/// backward recomputes each part.
struct FeedForwardActivations {
  TensorView hidden;      // [R, F] or [R, 2 F]: fc1 (and gate) outputs
  TensorView activated;   // [R, F]
  TensorView mean, rstd;  // [R] f32, with sub_ln
  FeedForwardActivations(const ModelConfig& config, int64_t rows, DType dtype, Arena& activations);
};

class AttentionLayer {
 public:
  /// prefix: "layers.0.self_attn.". activations: of B L rows. gathered_rows: arena for what the
  /// operator keeps for the backward.
  AttentionLayer(const ModelConfig& config, const ParameterLayout& layout,
                 const std::string& prefix, const FlatBuffers& buffers,
                 AttentionOperator& attention, int64_t batch, int64_t local_tokens,
                 const AttentionActivations& activations, Arena& gathered_rows);

  /// out [T, C] = attention part of x [T, C] (+ out if accumulate).
  void forward(Context& context, const TensorView& out, const TensorView& x, bool accumulate,
               const Visibility& visibility);
  /// Restores the activations of this layer's last forward from the same x, without communication.
  /// If out [T, C] is defined, also writes it as forward does without accumulate.
  void recompute(Context& context, const TensorView& out, const TensorView& x,
                 const Visibility& visibility);
  /// grad_x [T, C] = gradient (+ grad_x if accumulate); adds to weight gradients. x: as in forward.
  void backward(Context& context, const TensorView& grad_x, const TensorView& grad_out,
                const TensorView& x, bool accumulate, const Visibility& visibility,
                LayerScratch& scratch);

  /// Queries, keys and values of the last forward, before positions.
  QueryKeyValue attended_inputs() const;

 private:
  struct Norm {
    TensorView weight, bias, grad_weight, grad_bias, mean, rstd;
  };
  QueryKeyValue split(const TensorView& qkv) const;
  void project(Context& context, const TensorView& x);
  TensorView attended_heads() const;
  void make_out_input(Context& context);
  const TensorView& out_input() const;

  AttentionOperator& attention_;
  int64_t batch_, local_tokens_, rows_, heads_, head_dim_, dim_;
  float eps_;
  bool sub_ln_, qk_norm_;
  TensorView qkv_weight_, qkv_bias_, grad_qkv_weight_, grad_qkv_bias_;
  TensorView out_weight_, out_bias_, grad_out_weight_, grad_out_bias_;
  Norm query_norm_, key_norm_, inner_norm_;
  AttentionActivations kept_;
  bool filled_ = false;  // kept_ is whole: no backward has written over it
  AttentionOperator::Saved saved_;
};

class FeedForwardLayer {
 public:
  /// prefix: "layers.0.ffn.".
  FeedForwardLayer(const ModelConfig& config, const ParameterLayout& layout,
                   const std::string& prefix, const FlatBuffers& buffers,
                   const FeedForwardActivations& activations);
  /// out [T, C] = feed-forward part of x [T, C] (+ out if accumulate).
  void forward(Context& context, const TensorView& out, const TensorView& x, bool accumulate,
               LayerScratch& scratch);
  /// Restores the activations of this layer's last forward from the same x. Does nothing if the
  /// layer works in parts; backward() restores them then.
  void recompute(Context& context, const TensorView& x, LayerScratch& scratch);
  /// grad_x [T, C] = gradient (+ grad_x if accumulate); adds to weight gradients, part by part.
  void backward(Context& context, const TensorView& grad_x, const TensorView& grad_out,
                const TensorView& x, bool accumulate, LayerScratch& scratch);

 private:
  TensorView gate_of(const TensorView& hidden) const;
  TensorView hidden_of(const TensorView& hidden) const;
  bool in_parts(const TensorView& x) const { return kept_.hidden.shape[0] < x.shape[0]; }
  template <typename Body>  // body(first row, rows) of every part
  void for_parts(Context& context, const TensorView& x, Body body);
  void activate(Context& context, const TensorView& x, LayerScratch& scratch);
  void backward_part(Context& context, const TensorView& grad_x, const TensorView& grad_out,
                     const TensorView& x, bool accumulate, LayerScratch& scratch);

  int64_t ffn_dim_;
  float eps_;
  Activation activation_;
  TensorView fc1_weight_, fc1_bias_, grad_fc1_weight_, grad_fc1_bias_;  // fc1 | gate fused
  TensorView fc2_weight_, fc2_bias_, grad_fc2_weight_, grad_fc2_bias_;
  TensorView norm_weight_, norm_bias_, grad_norm_weight_, grad_norm_bias_;
  FeedForwardActivations kept_;
};

}  // namespace longnet
