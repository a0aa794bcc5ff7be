// See layers.h. Each backward quotes the forward line whose derivative it is.
#include "model/layers.h"

#include <algorithm>

#include "kernels/layer_norm/layer_norm.h"
#include "kernels/linear/linear.h"

namespace longnet {

RotaryOptions rotary_options(const ModelConfig& config) {
  RotaryOptions options;
  options.position = config.position == "xpos"   ? Position::kXpos
                     : config.position == "rope" ? Position::kRope
                                                 : Position::kNone;
  options.base = config.rope_base;
  options.xpos_scale_base = config.xpos_scale_base;
  return options;
}

LayerScratch::LayerScratch(Context& context, const ModelConfig& config, int64_t rows, bool training,
                           Arena& workspace) {
  const int64_t c = config.dim, f = config.ffn_dim;
  const int64_t hidden = config.activation == "swiglu" ? 2 * f : f;
  if (training) {
    grad_hidden = workspace.allocate(DType::kF32, {rows, hidden});
    grad_activated = workspace.allocate(DType::kF32, {rows, f});
    grad_qkv = workspace.allocate(DType::kF32, {rows, 3 * c});
    grad_attended = workspace.allocate(DType::kF32, {rows, c});
  }
  reduction = workspace.allocate_bytes(
      std::max(layer_norm_backward_workspace_bytes(context, std::max(c, f)),
               activation_workspace_bytes(context, f)));
}

// ------------------------------------------------------------------------------ AttentionLayer

AttentionLayer::Norm AttentionLayer::norm(const ParameterLayout& layout, const std::string& name,
                                          const TensorView& parameters, const TensorView& gradients,
                                          int64_t groups, Arena& activations) const {
  Norm norm;
  norm.weight = layout.view(parameters, name + ".weight");
  norm.bias = layout.view(parameters, name + ".bias");
  if (gradients.defined()) {
    norm.grad_weight = layout.view(gradients, name + ".weight");
    norm.grad_bias = layout.view(gradients, name + ".bias");
  }
  norm.mean = activations.allocate(DType::kF32, {rows_, groups});
  norm.rstd = activations.allocate(DType::kF32, {rows_, groups});
  return norm;
}

AttentionLayer::AttentionLayer(const ModelConfig& config, const ParameterLayout& layout,
                               const std::string& prefix, const TensorView& parameters,
                               const TensorView& gradients, AttentionOperator& attention,
                               int64_t batch, int64_t local_tokens, Arena& activations)
    : attention_(attention),
      batch_(batch),
      local_tokens_(local_tokens),
      rows_(batch * local_tokens),
      heads_(config.heads),
      head_dim_(config.head_dim()),
      dim_(config.dim),
      eps_(static_cast<float>(config.layer_norm_eps)),
      sub_ln_(config.norm == "sub_ln"),
      qk_norm_(config.qk_norm) {
  qkv_weight_ = layout.fused_view(parameters, prefix + "q_proj.weight", 3);
  qkv_bias_ = layout.fused_view(parameters, prefix + "q_proj.bias", 3);
  out_weight_ = layout.view(parameters, prefix + "out_proj.weight");
  out_bias_ = layout.view(parameters, prefix + "out_proj.bias");
  if (gradients.defined()) {
    grad_qkv_weight_ = layout.fused_view(gradients, prefix + "q_proj.weight", 3);
    grad_qkv_bias_ = layout.fused_view(gradients, prefix + "q_proj.bias", 3);
    grad_out_weight_ = layout.view(gradients, prefix + "out_proj.weight");
    grad_out_bias_ = layout.view(gradients, prefix + "out_proj.bias");
  }
  qkv_ = activations.allocate(DType::kF32, {rows_, 3 * dim_});
  attended_ = activations.allocate(DType::kF32, {rows_, dim_});
  lse_ = activations.allocate(DType::kF32, {batch_, heads_, local_tokens_});
  if (qk_norm_) {
    query_norm_ = norm(layout, prefix + "q_norm", parameters, gradients, heads_, activations);
    key_norm_ = norm(layout, prefix + "k_norm", parameters, gradients, heads_, activations);
    normed_qk_ = activations.allocate(DType::kF32, {rows_, 2 * dim_});
  }
  if (sub_ln_) {
    inner_norm_ = norm(layout, prefix + "inner_attn_ln", parameters, gradients, 1, activations);
    normed_attended_ = activations.allocate(DType::kF32, {rows_, dim_});
  }
  saved_ = attention_.make_saved(activations);
}

namespace {

/// Columns [begin, begin + H D) of a [T, S] matrix as [B, L, H, D].
TensorView heads_view(const TensorView& matrix, int64_t begin, int64_t batch, int64_t local_tokens,
                      int64_t heads, int64_t head_dim) {
  const int64_t row_stride = matrix.stride[0];
  TensorView view(static_cast<float*>(matrix.data) + begin, DType::kF32,
                  {batch, local_tokens, heads, head_dim}, matrix.device);
  view.stride = {local_tokens * row_stride, row_stride, head_dim, 1};
  return view;
}

/// A [B, L, H, D] view as the [T, H, D] rows that the per-head norm takes.
TensorView token_rows(const TensorView& view) {
  TensorView rows(view.data, view.dtype,
                  {view.shape[0] * view.shape[1], view.shape[2], view.shape[3]}, view.device);
  rows.stride = {view.stride[1], view.stride[2], 1, 0};
  return rows;
}

/// A [T, C] matrix as the [T, 1, C] rows that the norm takes.
TensorView norm_rows(const TensorView& matrix) {
  TensorView rows(matrix.data, matrix.dtype, {matrix.shape[0], 1, matrix.shape[1]}, matrix.device);
  rows.stride = {matrix.stride[0], matrix.shape[1], 1, 0};
  return rows;
}

}  // namespace

QueryKeyValue AttentionLayer::split(const TensorView& qkv) const {
  const auto part = [&](int64_t index) {
    return heads_view(qkv, index * dim_, batch_, local_tokens_, heads_, head_dim_);
  };
  return {part(0), part(1), part(2)};
}

QueryKeyValue AttentionLayer::attended_inputs() const {
  QueryKeyValue inputs = split(qkv_);
  if (qk_norm_) {
    inputs.query = heads_view(normed_qk_, 0, batch_, local_tokens_, heads_, head_dim_);
    inputs.key = heads_view(normed_qk_, dim_, batch_, local_tokens_, heads_, head_dim_);
  }
  return inputs;
}

void AttentionLayer::forward(Context& context, const TensorView& out, const TensorView& x,
                             bool accumulate, const Visibility& visibility) {
  const QueryKeyValue raw = split(qkv_), inputs = attended_inputs();
  {
    Range range(context, "qkv");
    linear_forward(context, qkv_, x, qkv_weight_, qkv_bias_);
    if (qk_norm_) {
      layer_norm_forward(context, {.out = token_rows(inputs.query),
                                   .sum = {},
                                   .mean = query_norm_.mean,
                                   .rstd = query_norm_.rstd,
                                   .x = token_rows(raw.query),
                                   .residual = {},
                                   .weight = query_norm_.weight,
                                   .bias = query_norm_.bias,
                                   .eps = eps_});
      layer_norm_forward(context, {.out = token_rows(inputs.key),
                                   .sum = {},
                                   .mean = key_norm_.mean,
                                   .rstd = key_norm_.rstd,
                                   .x = token_rows(raw.key),
                                   .residual = {},
                                   .weight = key_norm_.weight,
                                   .bias = key_norm_.bias,
                                   .eps = eps_});
    }
  }
  attention_.forward(heads_view(attended_, 0, batch_, local_tokens_, heads_, head_dim_), lse_,
                     inputs, saved_, visibility);
  Range range(context, "out");
  if (sub_ln_)
    layer_norm_forward(context, {.out = norm_rows(normed_attended_),
                                 .sum = {},
                                 .mean = inner_norm_.mean,
                                 .rstd = inner_norm_.rstd,
                                 .x = norm_rows(attended_),
                                 .residual = {},
                                 .weight = inner_norm_.weight,
                                 .bias = inner_norm_.bias,
                                 .eps = eps_});
  linear_forward(context, out, sub_ln_ ? normed_attended_ : attended_, out_weight_, out_bias_,
                 accumulate);
}

void AttentionLayer::backward(Context& context, const TensorView& grad_x,
                              const TensorView& grad_out, const TensorView& x, bool accumulate,
                              const Visibility& visibility, LayerScratch& scratch) {
  const TensorView& grad_attended = scratch.grad_attended;  // [T, C]
  {
    Range range(context, "out");
    // out = normed_attended W_out^T + b
    linear_backward_weight(context, grad_out_weight_, grad_out_bias_, grad_out,
                           sub_ln_ ? normed_attended_ : attended_);
    linear_backward_input(context, grad_attended, grad_out, out_weight_);
    // normed_attended = LayerNorm(attended)
    if (sub_ln_)
      layer_norm_backward(context,
                          {.grad_x = norm_rows(grad_attended),
                           .grad_weight = inner_norm_.grad_weight,
                           .grad_bias = inner_norm_.grad_bias,
                           .grad_out = norm_rows(grad_attended),
                           .x = norm_rows(attended_),
                           .mean = inner_norm_.mean,
                           .rstd = inner_norm_.rstd,
                           .weight = inner_norm_.weight,
                           .accumulate = false},
                          scratch.reduction);
  }
  // attended = dilated attention(q, k, v)
  const QueryKeyValue raw = split(qkv_), grads = split(scratch.grad_qkv);
  attention_.backward(grads, heads_view(grad_attended, 0, batch_, local_tokens_, heads_, head_dim_),
                      heads_view(attended_, 0, batch_, local_tokens_, heads_, head_dim_), lse_,
                      attended_inputs(), saved_, visibility);
  Range range(context, "qkv");
  // q = LayerNorm per head (q_raw), k likewise
  if (qk_norm_) {
    const auto backward = [&](const Norm& norm, const TensorView& grad, const TensorView& input) {
      layer_norm_backward(context,
                          {.grad_x = token_rows(grad),
                           .grad_weight = norm.grad_weight,
                           .grad_bias = norm.grad_bias,
                           .grad_out = token_rows(grad),
                           .x = token_rows(input),
                           .mean = norm.mean,
                           .rstd = norm.rstd,
                           .weight = norm.weight,
                           .accumulate = false},
                          scratch.reduction);
    };
    backward(query_norm_, grads.query, raw.query);
    backward(key_norm_, grads.key, raw.key);
  }
  // qkv = x W_qkv^T + b
  linear_backward_weight(context, grad_qkv_weight_, grad_qkv_bias_, scratch.grad_qkv, x);
  linear_backward_input(context, grad_x, scratch.grad_qkv, qkv_weight_, accumulate);
}

// ---------------------------------------------------------------------------- FeedForwardLayer

FeedForwardLayer::FeedForwardLayer(const ModelConfig& config, const ParameterLayout& layout,
                                   const std::string& prefix, const TensorView& parameters,
                                   const TensorView& gradients, int64_t rows, Arena& activations)
    : rows_(rows),
      ffn_dim_(config.ffn_dim),
      eps_(static_cast<float>(config.layer_norm_eps)),
      activation_(config.activation == "swiglu" ? Activation::kSwiglu : Activation::kGelu) {
  const int64_t parts = activation_ == Activation::kSwiglu ? 2 : 1;
  fc1_weight_ = layout.fused_view(parameters, prefix + "fc1.weight", parts);
  fc1_bias_ = layout.fused_view(parameters, prefix + "fc1.bias", parts);
  fc2_weight_ = layout.view(parameters, prefix + "fc2.weight");
  fc2_bias_ = layout.view(parameters, prefix + "fc2.bias");
  norm_weight_ = layout.view(parameters, prefix + "ffn_layernorm.weight");
  norm_bias_ = layout.view(parameters, prefix + "ffn_layernorm.bias");
  if (gradients.defined()) {
    grad_fc1_weight_ = layout.fused_view(gradients, prefix + "fc1.weight", parts);
    grad_fc1_bias_ = layout.fused_view(gradients, prefix + "fc1.bias", parts);
    grad_fc2_weight_ = layout.view(gradients, prefix + "fc2.weight");
    grad_fc2_bias_ = layout.view(gradients, prefix + "fc2.bias");
    grad_norm_weight_ = layout.view(gradients, prefix + "ffn_layernorm.weight");
    grad_norm_bias_ = layout.view(gradients, prefix + "ffn_layernorm.bias");
  }
  hidden_ = activations.allocate(DType::kF32, {rows_, parts * ffn_dim_});
  activated_ = activations.allocate(DType::kF32, {rows_, ffn_dim_});
  if (norm_weight_.defined()) {
    mean_ = activations.allocate(DType::kF32, {rows_});
    rstd_ = activations.allocate(DType::kF32, {rows_});
  }
}

TensorView FeedForwardLayer::hidden_of(const TensorView& hidden) const {
  return hidden.slice(1, 0, ffn_dim_);
}
TensorView FeedForwardLayer::gate_of(const TensorView& hidden) const {
  return activation_ == Activation::kSwiglu ? hidden.slice(1, ffn_dim_, ffn_dim_) : TensorView{};
}

void FeedForwardLayer::forward(Context& context, const TensorView& out, const TensorView& x,
                               bool accumulate, LayerScratch& scratch) {
  Range range(context, "feed_forward");
  linear_forward(context, hidden_, x, fc1_weight_, fc1_bias_);
  activation_forward(context,
                     {.out = activated_,
                      .mean = mean_,
                      .rstd = rstd_,
                      .hidden = hidden_of(hidden_),
                      .gate = gate_of(hidden_),
                      .weight = norm_weight_,
                      .bias = norm_bias_,
                      .eps = eps_,
                      .activation = activation_},
                     scratch.reduction);
  linear_forward(context, out, activated_, fc2_weight_, fc2_bias_, accumulate);
}

void FeedForwardLayer::backward(Context& context, const TensorView& grad_x,
                                const TensorView& grad_out, const TensorView& x, bool accumulate,
                                LayerScratch& scratch) {
  Range range(context, "feed_forward");
  // out = activated W_fc2^T + b
  linear_backward_weight(context, grad_fc2_weight_, grad_fc2_bias_, grad_out, activated_);
  linear_backward_input(context, scratch.grad_activated, grad_out, fc2_weight_);
  // activated = (LayerNorm of) activation(hidden, gate)
  activation_backward(context,
                      {.grad_hidden = hidden_of(scratch.grad_hidden),
                       .grad_gate = gate_of(scratch.grad_hidden),
                       .grad_weight = grad_norm_weight_,
                       .grad_bias = grad_norm_bias_,
                       .grad_out = scratch.grad_activated,
                       .hidden = hidden_of(hidden_),
                       .gate = gate_of(hidden_),
                       .mean = mean_,
                       .rstd = rstd_,
                       .weight = norm_weight_,
                       .activation = activation_},
                      scratch.reduction);
  // hidden | gate = x W_fc1^T + b
  linear_backward_weight(context, grad_fc1_weight_, grad_fc1_bias_, scratch.grad_hidden, x);
  linear_backward_input(context, grad_x, scratch.grad_hidden, fc1_weight_, accumulate);
}

}  // namespace longnet
