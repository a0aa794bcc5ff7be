// See layers.h. Each backward quotes the forward line whose derivative it is.
#include "model/layers.h"

#include <algorithm>

#include "kernels/cast/cast.h"
#include "kernels/layer_norm/layer_norm.h"
#include "kernels/linear/linear.h"

namespace longnet {

namespace {

/// Whether out_proj reads something else than the merged attention itself.
bool has_out_input(const ModelConfig& config, DType dtype) {
  return config.norm == "sub_ln" || dtype != DType::kF32;
}

/// Rows [begin, begin + count) of an optional tensor.
TensorView rows_of(const TensorView& view, int64_t begin, int64_t count) {
  return view.defined() ? view.slice(0, begin, count) : TensorView{};
}

}  // namespace

RotaryOptions rotary_options(const ModelConfig& config) {
  RotaryOptions options;
  options.position = config.position == "xpos"   ? Position::kXpos
                     : config.position == "rope" ? Position::kRope
                                                 : Position::kNone;
  options.base = config.rope_base;
  options.xpos_scale_base = config.xpos_scale_base;
  return options;
}

LayerScratch::LayerScratch(Context& context, const ModelConfig& config, int64_t rows,
                           int64_t feed_forward_rows, DType dtype, bool training,
                           const TensorView& grad_qkv, Arena& workspace)
    : grad_qkv(grad_qkv) {
  const int64_t c = config.dim, f = config.ffn_dim;
  const int64_t hidden = config.activation == "swiglu" ? 2 * f : f;
  if (training) {
    grad_hidden = workspace.allocate(dtype, {feed_forward_rows, hidden});
    grad_activated = workspace.allocate(dtype, {feed_forward_rows, f});
    if (!has_out_input(config, dtype)) grad_attended = workspace.allocate(dtype, {rows, c});
  }
  reduction = workspace.allocate_bytes(
      std::max(layer_norm_backward_workspace_bytes(context, std::max(c, f)),
               activation_workspace_bytes(context, f, dtype)));
}

CountsAsRecomputed::~CountsAsRecomputed() {
  Work& work = context_.work();
  work = {before_.matmul_flops, before_.attention_flops,
          work.recomputed_flops + work.matmul_flops - before_.matmul_flops + work.attention_flops -
              before_.attention_flops};
}

AttentionActivations::AttentionActivations(const ModelConfig& config, int64_t batch,
                                           int64_t local_tokens, DType dtype, Arena& activations) {
  const int64_t rows = batch * local_tokens, c = config.dim, h = config.heads;
  const auto take = [&](std::initializer_list<int64_t> shape) {
    return activations.allocate(DType::kF32, shape);
  };
  qkv = activations.allocate(dtype, {rows, 3 * c});
  attended = take({rows, c});
  lse = take({batch, h, local_tokens});
  if (config.qk_norm) {
    query_mean = take({rows, h});
    query_rstd = take({rows, h});
    key_mean = take({rows, h});
    key_rstd = take({rows, h});
    normed_qk = activations.allocate(dtype, {rows, 2 * c});
  }
  if (config.norm == "sub_ln") {
    attended_mean = take({rows});
    attended_rstd = take({rows});
  }
  if (has_out_input(config, dtype)) out_input = activations.allocate(dtype, {rows, c});
}

FeedForwardActivations::FeedForwardActivations(const ModelConfig& config, int64_t rows, DType dtype,
                                               Arena& activations) {
  const int64_t f = config.ffn_dim;
  hidden = activations.allocate(dtype, {rows, config.activation == "swiglu" ? 2 * f : f});
  activated = activations.allocate(dtype, {rows, f});
  if (config.norm == "sub_ln") {
    mean = activations.allocate(DType::kF32, {rows});
    rstd = activations.allocate(DType::kF32, {rows});
  }
}

// ------------------------------------------------------------------------------ AttentionLayer

AttentionLayer::AttentionLayer(const ModelConfig& config, const ParameterLayout& layout,
                               const std::string& prefix, const FlatBuffers& buffers,
                               AttentionOperator& attention, int64_t batch, int64_t local_tokens,
                               const AttentionActivations& activations, Arena& gathered_rows)
    : attention_(attention),
      batch_(batch),
      local_tokens_(local_tokens),
      rows_(batch * local_tokens),
      heads_(config.heads),
      head_dim_(config.head_dim()),
      dim_(config.dim),
      eps_(static_cast<float>(config.layer_norm_eps)),
      sub_ln_(config.norm == "sub_ln"),
      qk_norm_(config.qk_norm),
      kept_(activations) {
  const TensorView &matrices = buffers.matrices, &gradients = buffers.gradients;
  qkv_weight_ = layout.fused_view(matrices, prefix + "q_proj.weight", 3);
  qkv_bias_ = layout.fused_view(matrices, prefix + "q_proj.bias", 3);
  out_weight_ = layout.view(matrices, prefix + "out_proj.weight");
  out_bias_ = layout.view(matrices, prefix + "out_proj.bias");
  if (gradients.defined()) {
    grad_qkv_weight_ = layout.fused_view(gradients, prefix + "q_proj.weight", 3);
    grad_qkv_bias_ = layout.fused_view(gradients, prefix + "q_proj.bias", 3);
    grad_out_weight_ = layout.view(gradients, prefix + "out_proj.weight");
    grad_out_bias_ = layout.view(gradients, prefix + "out_proj.bias");
  }
  const auto norm = [&](const std::string& name, const TensorView& mean, const TensorView& rstd) {
    Norm norm{layout.view(buffers.parameters, prefix + name + ".weight"),
              layout.view(buffers.parameters, prefix + name + ".bias"),
              {},
              {},
              mean,
              rstd};
    if (gradients.defined()) {
      norm.grad_weight = layout.view(gradients, prefix + name + ".weight");
      norm.grad_bias = layout.view(gradients, prefix + name + ".bias");
    }
    return norm;
  };
  if (qk_norm_) {
    query_norm_ = norm("q_norm", kept_.query_mean, kept_.query_rstd);
    key_norm_ = norm("k_norm", kept_.key_mean, kept_.key_rstd);
  }
  if (sub_ln_) inner_norm_ = norm("inner_attn_ln", kept_.attended_mean, kept_.attended_rstd);
  saved_ = attention_.make_saved(gathered_rows);
}

namespace {

/// Columns [begin, begin + H D) of a [T, S] matrix as [B, L, H, D].
TensorView heads_view(const TensorView& matrix, int64_t begin, int64_t batch, int64_t local_tokens,
                      int64_t heads, int64_t head_dim) {
  const int64_t row_stride = matrix.stride[0];
  TensorView view(static_cast<char*>(matrix.data) + begin * dtype_size(matrix.dtype), matrix.dtype,
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
  QueryKeyValue inputs = split(kept_.qkv);
  if (qk_norm_) {
    inputs.query = heads_view(kept_.normed_qk, 0, batch_, local_tokens_, heads_, head_dim_);
    inputs.key = heads_view(kept_.normed_qk, dim_, batch_, local_tokens_, heads_, head_dim_);
  }
  return inputs;
}

TensorView AttentionLayer::attended_heads() const {
  return heads_view(kept_.attended, 0, batch_, local_tokens_, heads_, head_dim_);
}

void AttentionLayer::project(Context& context, const TensorView& x) {
  Range range(context, "qkv");
  linear_forward(context, kept_.qkv, x, qkv_weight_, qkv_bias_);
  if (!qk_norm_) return;
  const QueryKeyValue raw = split(kept_.qkv), inputs = attended_inputs();
  const auto normalise = [&](const Norm& norm, const TensorView& out, const TensorView& input) {
    layer_norm_forward(context, {.out = token_rows(out),
                                 .sum = {},
                                 .mean = norm.mean,
                                 .rstd = norm.rstd,
                                 .x = token_rows(input),
                                 .residual = {},
                                 .weight = norm.weight,
                                 .bias = norm.bias,
                                 .eps = eps_});
  };
  normalise(query_norm_, inputs.query, raw.query);
  normalise(key_norm_, inputs.key, raw.key);
}

const TensorView& AttentionLayer::out_input() const {
  return kept_.out_input.defined() ? kept_.out_input : kept_.attended;
}

void AttentionLayer::make_out_input(Context& context) {
  if (!sub_ln_) {
    if (kept_.out_input.defined()) cast(context, kept_.out_input, kept_.attended);
    return;
  }
  layer_norm_forward(context, {.out = norm_rows(kept_.out_input),
                               .sum = {},
                               .mean = inner_norm_.mean,
                               .rstd = inner_norm_.rstd,
                               .x = norm_rows(kept_.attended),
                               .residual = {},
                               .weight = inner_norm_.weight,
                               .bias = inner_norm_.bias,
                               .eps = eps_});
}

void AttentionLayer::forward(Context& context, const TensorView& out, const TensorView& x,
                             bool accumulate, const Visibility& visibility) {
  project(context, x);
  attention_.forward(attended_heads(), kept_.lse, attended_inputs(), saved_, visibility);
  Range range(context, "out");
  make_out_input(context);
  filled_ = true;
  linear_forward(context, out, out_input(), out_weight_, out_bias_, accumulate);
}

void AttentionLayer::recompute(Context& context, const TensorView& out, const TensorView& x,
                               const Visibility& visibility) {
  project(context, x);
  attention_.recompute(attended_heads(), kept_.lse, attended_inputs(), saved_, visibility);
  Range range(context, "out");
  make_out_input(context);
  filled_ = true;
  if (out.defined()) linear_forward(context, out, out_input(), out_weight_, out_bias_);
}

void AttentionLayer::backward(Context& context, const TensorView& grad_x,
                              const TensorView& grad_out, const TensorView& x, bool accumulate,
                              const Visibility& visibility, LayerScratch& scratch) {
  LN_CHECK(filled_, "attention backward without a forward since the last backward");
  filled_ = false;
  // [T, C]; takes the place of out_input once the weight's gradient has read that
  const TensorView& grad_attended =
      kept_.out_input.defined() ? kept_.out_input : scratch.grad_attended;
  {
    Range range(context, "out");
    // out = out_input W_out^T + b
    linear_backward_weight(context, grad_out_weight_, grad_out_bias_, grad_out, out_input());
    linear_backward_input(context, grad_attended, grad_out, out_weight_);
    // out_input = LayerNorm(attended), or attended
    if (sub_ln_)
      layer_norm_backward(context,
                          {.grad_x = norm_rows(grad_attended),
                           .grad_weight = inner_norm_.grad_weight,
                           .grad_bias = inner_norm_.grad_bias,
                           .grad_out = norm_rows(grad_attended),
                           .x = norm_rows(kept_.attended),
                           .mean = inner_norm_.mean,
                           .rstd = inner_norm_.rstd,
                           .weight = inner_norm_.weight,
                           .accumulate = false},
                          scratch.reduction);
  }
  // attended = dilated attention(q, k, v)
  const QueryKeyValue raw = split(kept_.qkv), grads = split(scratch.grad_qkv);
  attention_.backward(grads, heads_view(grad_attended, 0, batch_, local_tokens_, heads_, head_dim_),
                      attended_heads(), kept_.lse, attended_inputs(), saved_, visibility);
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
  TensorView grad_qkv = scratch.grad_qkv;  // sums over branches and queries: float32 until here
  if (kept_.qkv.dtype != DType::kF32) {    // qkv itself has been read for the last time
    cast(context, kept_.qkv, grad_qkv);
    grad_qkv = kept_.qkv;
  }
  linear_backward_weight(context, grad_qkv_weight_, grad_qkv_bias_, grad_qkv, x);
  linear_backward_input(context, grad_x, grad_qkv, qkv_weight_, accumulate);
}

// ---------------------------------------------------------------------------- FeedForwardLayer

FeedForwardLayer::FeedForwardLayer(const ModelConfig& config, const ParameterLayout& layout,
                                   const std::string& prefix, const FlatBuffers& buffers,
                                   const FeedForwardActivations& activations)
    : ffn_dim_(config.ffn_dim),
      eps_(static_cast<float>(config.layer_norm_eps)),
      activation_(config.activation == "swiglu" ? Activation::kSwiglu : Activation::kGelu),
      kept_(activations) {
  const int64_t parts = activation_ == Activation::kSwiglu ? 2 : 1;
  const TensorView &matrices = buffers.matrices, &gradients = buffers.gradients;
  fc1_weight_ = layout.fused_view(matrices, prefix + "fc1.weight", parts);
  fc1_bias_ = layout.fused_view(matrices, prefix + "fc1.bias", parts);
  fc2_weight_ = layout.view(matrices, prefix + "fc2.weight");
  fc2_bias_ = layout.view(matrices, prefix + "fc2.bias");
  norm_weight_ = layout.view(buffers.parameters, prefix + "ffn_layernorm.weight");
  norm_bias_ = layout.view(buffers.parameters, prefix + "ffn_layernorm.bias");
  if (gradients.defined()) {
    grad_fc1_weight_ = layout.fused_view(gradients, prefix + "fc1.weight", parts);
    grad_fc1_bias_ = layout.fused_view(gradients, prefix + "fc1.bias", parts);
    grad_fc2_weight_ = layout.view(gradients, prefix + "fc2.weight");
    grad_fc2_bias_ = layout.view(gradients, prefix + "fc2.bias");
    grad_norm_weight_ = layout.view(gradients, prefix + "ffn_layernorm.weight");
    grad_norm_bias_ = layout.view(gradients, prefix + "ffn_layernorm.bias");
  }
}

TensorView FeedForwardLayer::hidden_of(const TensorView& hidden) const {
  return hidden.slice(1, 0, ffn_dim_);
}
TensorView FeedForwardLayer::gate_of(const TensorView& hidden) const {
  return activation_ == Activation::kSwiglu ? hidden.slice(1, ffn_dim_, ffn_dim_) : TensorView{};
}

template <typename Body>
void FeedForwardLayer::for_parts(Context& context, const TensorView& x, Body body) {
  for_pieces(context, x.shape[0], kept_.hidden.shape[0], [&](int64_t begin, int64_t count) {
    body(begin, count);
    if (in_parts(x)) context.keep_pace();
  });
}

void FeedForwardLayer::forward(Context& context, const TensorView& out, const TensorView& x,
                               bool accumulate, LayerScratch& scratch) {
  Range range(context, "feed_forward");
  for_parts(context, x, [&](int64_t begin, int64_t count) {
    activate(context, x.slice(0, begin, count), scratch);
    linear_forward(context, out.slice(0, begin, count), kept_.activated.slice(0, 0, count),
                   fc2_weight_, fc2_bias_, accumulate);
  });
}

void FeedForwardLayer::recompute(Context& context, const TensorView& x, LayerScratch& scratch) {
  if (in_parts(x)) return;
  Range range(context, "feed_forward");
  activate(context, x, scratch);
}

/// Activations of x, at most R rows.
void FeedForwardLayer::activate(Context& context, const TensorView& x, LayerScratch& scratch) {
  const int64_t rows = x.shape[0];
  const TensorView hidden = kept_.hidden.slice(0, 0, rows);
  linear_forward(context, hidden, x, fc1_weight_, fc1_bias_);
  activation_forward(context,
                     {.out = kept_.activated.slice(0, 0, rows),
                      .mean = rows_of(kept_.mean, 0, rows),
                      .rstd = rows_of(kept_.rstd, 0, rows),
                      .hidden = hidden_of(hidden),
                      .gate = gate_of(hidden),
                      .weight = norm_weight_,
                      .bias = norm_bias_,
                      .eps = eps_,
                      .activation = activation_},
                     scratch.reduction);
}

void FeedForwardLayer::backward(Context& context, const TensorView& grad_x,
                                const TensorView& grad_out, const TensorView& x, bool accumulate,
                                LayerScratch& scratch) {
  Range range(context, "feed_forward");
  for_parts(context, x, [&](int64_t begin, int64_t count) {
    const TensorView part = x.slice(0, begin, count);
    if (in_parts(x)) {
      const CountsAsRecomputed counts(context);
      activate(context, part, scratch);
    }
    backward_part(context, grad_x.slice(0, begin, count), grad_out.slice(0, begin, count), part,
                  accumulate, scratch);
  });
}

/// Of rows whose activations are in memory.
void FeedForwardLayer::backward_part(Context& context, const TensorView& grad_x,
                                     const TensorView& grad_out, const TensorView& x,
                                     bool accumulate, LayerScratch& scratch) {
  const int64_t rows = x.shape[0];
  const TensorView hidden = kept_.hidden.slice(0, 0, rows);
  const TensorView grad_hidden = scratch.grad_hidden.slice(0, 0, rows);
  const TensorView grad_activated = scratch.grad_activated.slice(0, 0, rows);
  // out = activated W_fc2^T + b
  linear_backward_weight(context, grad_fc2_weight_, grad_fc2_bias_, grad_out,
                         kept_.activated.slice(0, 0, rows));
  linear_backward_input(context, grad_activated, grad_out, fc2_weight_);
  // activated = (LayerNorm of) activation(hidden, gate)
  activation_backward(context,
                      {.grad_hidden = hidden_of(grad_hidden),
                       .grad_gate = gate_of(grad_hidden),
                       .grad_weight = grad_norm_weight_,
                       .grad_bias = grad_norm_bias_,
                       .grad_out = grad_activated,
                       .hidden = hidden_of(hidden),
                       .gate = gate_of(hidden),
                       .mean = rows_of(kept_.mean, 0, rows),
                       .rstd = rows_of(kept_.rstd, 0, rows),
                       .weight = norm_weight_,
                       .activation = activation_},
                      scratch.reduction);
  // hidden | gate = x W_fc1^T + b
  linear_backward_weight(context, grad_fc1_weight_, grad_fc1_bias_, grad_hidden, x);
  linear_backward_input(context, grad_x, grad_hidden, fc1_weight_, accumulate);
}

}  // namespace longnet
