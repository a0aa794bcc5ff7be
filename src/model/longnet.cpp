// See longnet.h and docs/walkthrough.md. Each norm also does the residual addition before it.
#include "model/longnet.h"

#include <algorithm>

#include "core/host_copy.h"
#include "kernels/cast/cast.h"
#include "kernels/embedding/embedding.h"
#include "kernels/fill/fill.h"
#include "kernels/layer_norm/layer_norm.h"
#include "kernels/linear/linear.h"

namespace longnet {
namespace {

/// Logits of at most this many bytes exist at a time; large enough for full-speed products.
int64_t logit_chunk_bytes(const Context& context) {
  return int64_t{context.device().type == DeviceType::kCUDA ? 256 : 32} << 20;
}

/// Elements from one row of a chunk's logits to the next. On a GPU every row is aligned, whatever
/// the vocabulary: matrix products and packs there need 16 bytes.
int64_t logit_row_elements(const Context& context, int64_t vocabulary) {
  constexpr int64_t kUnit = 64;
  return context.on_gpu() ? (vocabulary + kUnit - 1) / kUnit * kUnit : vocabulary;
}

TensorView as_rows(const TensorView& matrix) {  // [T, C] -> [T, 1, C]
  if (!matrix.defined()) return {};
  return matrix.view({matrix.shape[0], 1, matrix.shape[1]});
}
TensorView as_stat(const TensorView& vector) {  // [T] -> [T, 1]
  return vector.view({vector.shape[0], 1});
}

/// Rows that a feed-forward layer works on at a time: parts of one length.
int64_t feed_forward_part(int64_t rows, int64_t limit) {
  LN_CHECK(limit > 0, "feed-forward layers of {} rows in parts of {}", rows, limit);
  if (rows <= limit) return rows;
  const int64_t parts = (rows - 1) / limit + 1;
  return (rows - 1) / parts + 1;
}

}  // namespace

LongNet::BlockActivations::BlockActivations(const ModelConfig& config, int64_t batch,
                                            int64_t local_tokens, int64_t feed_forward_rows,
                                            DType dtype, const TensorView& middle,
                                            const TensorView& normed_middle, Arena& activations)
    : middle(middle),
      normed_middle(normed_middle),
      attention(config, batch, local_tokens, dtype, activations),
      feed_forward(config, feed_forward_rows, dtype, activations) {
  const int64_t rows = batch * local_tokens;
  const auto norm = [&](TensorView& mean, TensorView& rstd, TensorView& normed) {
    mean = activations.allocate(DType::kF32, {rows});
    rstd = activations.allocate(DType::kF32, {rows});
    if (!normed.defined()) normed = activations.allocate(dtype, {rows, config.dim});
  };
  norm(input_mean, input_rstd, normed_input);
  if (config.block != "sequential") return;
  if (!middle.defined()) this->middle = activations.allocate(DType::kF32, {rows, config.dim});
  norm(middle_mean, middle_rstd, this->normed_middle);
}

LongNet::LongNet(Context& context, const ModelConfig& config, const SequencePlan& plan,
                 int64_t batch, const ParameterLayout& layout, const TensorView& parameters,
                 const TensorView& gradients, KeyValueExchange& exchange, const ModelArenas& arenas,
                 const LongNetOptions& options)
    : context_(context),
      config_(config),
      batch_(batch),
      local_tokens_(plan.local_tokens()),
      rows_(batch * plan.local_tokens()),
      sequential_(config.block == "sequential"),
      recompute_(options.recompute && gradients.defined()),
      eps_(static_cast<float>(config.layer_norm_eps)),
      dtype_(options.matrices.defined() ? options.matrices.dtype : parameters.dtype),
      exchange_(exchange) {
  LN_CHECK(parameters.elements() == layout.elements(), "parameters {}, layout has {}",
           parameters.describe(), layout.elements());
  const FlatBuffers buffers{parameters, options.matrices.defined() ? options.matrices : parameters,
                            gradients};
  LN_CHECK(buffers.matrices.elements() == layout.elements(), "matrices {}, layout has {}",
           buffers.matrices.describe(), layout.elements());
  const bool training = gradients.defined();
  Arena& activations = arenas.activations;
  Arena& workspace = arenas.workspace;
  const int64_t c = config.dim;
  const auto matrix = [&](Arena& arena) { return arena.allocate(DType::kF32, {rows_, c}); };
  const auto column = [&] { return activations.allocate(DType::kF32, {rows_}); };
  const auto grad = [&](const std::string& name) {
    return training ? layout.view(gradients, name) : TensorView{};
  };

  AttentionOperator* attention = options.attention;
  if (attention == nullptr) {
    own_attention_ = std::make_unique<DilatedAttentionOperator>(
        context, plan, batch,
        DilatedAttentionSettings{.head_dim = config.head_dim(),
                                 .causal = config.causal,
                                 .rotary = rotary_options(config),
                                 .scale = 0,
                                 .training = training,
                                 .dtype = dtype_},
        exchange, workspace);
    attention = own_attention_.get();
  }
  const int64_t part = recompute_ ? feed_forward_part(rows_, options.recompute_rows) : rows_;
  for (int64_t layer = 0; layer < config.layers; ++layer)
    blocks_.emplace_back().input = matrix(activations);
  place_shared_buffers(training, activations);
  scratch_ = std::make_unique<LayerScratch>(context, config, rows_, part, dtype_, training,
                                            grad_qkv_, workspace);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    Block& block = blocks_[layer];
    block.attention_norm_weight = layout.view(parameters, prefix + "self_attn_layer_norm.weight");
    block.attention_norm_bias = layout.view(parameters, prefix + "self_attn_layer_norm.bias");
    block.grad_attention_norm_weight = grad(prefix + "self_attn_layer_norm.weight");
    block.grad_attention_norm_bias = grad(prefix + "self_attn_layer_norm.bias");
    block.kept = recompute_ && layer > 0 ? blocks_[0].kept
                                         : std::make_shared<BlockActivations>(
                                               config, batch, local_tokens_, part, dtype_, middle_,
                                               normed_middle_, activations);
    if (sequential_) {
      block.ffn_norm_weight = layout.view(parameters, prefix + "final_layer_norm.weight");
      block.ffn_norm_bias = layout.view(parameters, prefix + "final_layer_norm.bias");
      block.grad_ffn_norm_weight = grad(prefix + "final_layer_norm.weight");
      block.grad_ffn_norm_bias = grad(prefix + "final_layer_norm.bias");
    }
    block.attention =
        std::make_unique<AttentionLayer>(config, layout, prefix + "self_attn.", buffers, *attention,
                                         batch, local_tokens_, block.kept->attention, activations);
    block.feed_forward = std::make_unique<FeedForwardLayer>(config, layout, prefix + "ffn.",
                                                            buffers, block.kept->feed_forward);
    layer_ranges_.push_back(layout.layer_range(layer));
  }
  head_range_ = layout.head_range();
  embedding_range_ = layout.embedding_range();

  const std::string output =
      config.tie_embeddings ? "embed_tokens.weight" : "output_projection.weight";
  embedding_ = layout.view(buffers.matrices, "embed_tokens.weight");
  grad_embedding_ = grad("embed_tokens.weight");
  output_weight_ = layout.view(buffers.matrices, output);
  grad_output_weight_ = grad(output);
  final_weight_ = layout.view(parameters, "layer_norm.weight");
  final_bias_ = layout.view(parameters, "layer_norm.bias");
  grad_final_weight_ = grad("layer_norm.weight");
  grad_final_bias_ = grad("layer_norm.bias");

  embedded_ = blocks_[0].input;
  final_mean_ = column();
  final_rstd_ = column();
  branch_out_ = matrix(workspace);
  if (training) {
    grad_stream_ = matrix(workspace);
    grad_normed_ = branch_out_;  // a norm has read either before the other is written
    const int64_t bytes = embedding_backward_workspace_bytes(context, rows_, config.vocab_size, c);
    if (bytes > 0) embedding_workspace_ = workspace.allocate_bytes(bytes);
  }
  const int64_t row = logit_row_elements(context, config.vocab_size);
  const int64_t chunk =
      std::clamp<int64_t>(logit_chunk_bytes(context) / (row * static_cast<int64_t>(sizeof(float))),
                          1, std::max<int64_t>(rows_, 1));
  const auto chunk_matrix = [&](DType dtype) {
    return workspace.allocate(dtype, {chunk, row}).slice(1, 0, config.vocab_size);
  };
  chunk_logits_ = chunk_matrix(DType::kF32);
  loss_sums_ = workspace.allocate_bytes(cross_entropy_sums_bytes(context, chunk));
  if (training && dtype_ != DType::kF32) {
    rounded_grad_stream_ = hidden_;  // which the loss has read; products read it before grad_qkv_
    rounded_chunk_grad_ = chunk_matrix(dtype_);
  }
}

/// What is alive at other times than the gradients of queries, keys and values, in their memory:
/// the final norm's tensors until the backward begins; after that the stream's gradient and a
/// block's middle until its attention's backward.
void LongNet::place_shared_buffers(bool training, Arena& activations) {
  const int64_t c = config_.dim;
  if (training) grad_qkv_ = activations.allocate(DType::kF32, {rows_, 3 * c});
  int64_t used = 0;
  // Tensors that no longer fit get memory of their own: the last one if all are f32.
  const auto take = [&](DType dtype) {
    TensorView view(nullptr, dtype, {rows_, c}, activations.device());
    if (!training || used + view.bytes() > grad_qkv_.bytes())
      return activations.allocate(dtype, {rows_, c});
    view.data = static_cast<char*>(grad_qkv_.data) + used;
    used += (view.bytes() + kAlignment - 1) / kAlignment * kAlignment;
    return view;
  };
  final_sum_ = take(DType::kF32);
  if (recompute_ && sequential_) middle_ = take(DType::kF32);
  hidden_ = take(dtype_);
  if (recompute_ && sequential_) normed_middle_ = take(dtype_);
}

// The Context may outlive this; it must not call back into it.
LongNet::~LongNet() { context_.set_progress({}); }

void LongNet::forward(const TensorView& tokens, const Visibility& visibility) {
  LN_CHECK(tokens.elements() == rows_, "tokens {}, this rank holds {} x {}", tokens.describe(),
           batch_, local_tokens_);
  tokens_ = tokens.view({rows_});
  {
    Range range(context_, "embed");
    embedding_forward(context_, embedded_, embedding_, tokens_);
  }
  run_blocks(visibility);
}

void LongNet::forward_vectors(const TensorView& vectors, const Visibility& visibility) {
  LN_CHECK(vectors.elements() == embedded_.elements() && vectors.contiguous(),
           "vectors {}, wanted [{}, {}, {}] without gaps", vectors.describe(), batch_,
           local_tokens_, config_.dim);
  tokens_ = {};
  copy(context_, embedded_, vectors);
  run_blocks(visibility);
}

void LongNet::run_blocks(const Visibility& visibility) {
  const Phase phase("forward");
  visibility_ = visibility;
  context_.set_progress([this] { exchange_.progress(); });
  // The stream's value before the pending addition, and what is to be added (nothing at first).
  // What a half adds to the stream is added by the norm that reads the stream next.
  TensorView stream = embedded_, pending;
  for (Block& block : blocks_) {
    BlockActivations& kept = *block.kept;
    const TensorView sum = pending.defined() ? block.input : TensorView{};  // the first has it
    norm_forward(kept.normed_input, sum, kept.input_mean, kept.input_rstd, stream, pending,
                 block.attention_norm_weight, block.attention_norm_bias);
    block.attention->forward(context_, branch_out_, kept.normed_input, false, visibility);
    stream = block.input;
    pending = branch_out_;
    if (sequential_) {
      norm_forward(kept.normed_middle, kept.middle, kept.middle_mean, kept.middle_rstd, stream,
                   pending, block.ffn_norm_weight, block.ffn_norm_bias);
      stream = kept.middle;
      block.feed_forward->forward(context_, branch_out_, kept.normed_middle, false, *scratch_);
    } else {
      block.feed_forward->forward(context_, branch_out_, kept.normed_input, true, *scratch_);
    }
    context_.keep_pace();
  }
  norm_forward(hidden_, final_sum_, final_mean_, final_rstd_, stream, pending, final_weight_,
               final_bias_);
  activations_of_ = config_.layers - 1;
  forward_kept_ = true;
}

void LongNet::check_forward(const char* what) const {
  LN_CHECK(forward_kept_, "{} without a forward since the last backward", what);
}

const TensorView& LongNet::hidden() const {
  check_forward("hidden");
  return hidden_;
}

void LongNet::norm_forward(const TensorView& out, const TensorView& sum, const TensorView& mean,
                           const TensorView& rstd, const TensorView& x, const TensorView& residual,
                           const TensorView& weight, const TensorView& bias) {
  Range range(context_, "norm");
  layer_norm_forward(context_, {.out = as_rows(out),
                                .sum = as_rows(sum),
                                .mean = as_stat(mean),
                                .rstd = as_stat(rstd),
                                .x = as_rows(x),
                                .residual = as_rows(residual),
                                .weight = weight,
                                .bias = bias,
                                .eps = eps_});
}

void LongNet::recompute_block(int64_t layer) {
  if (activations_of_ == layer) return;
  Block& block = blocks_[layer];
  BlockActivations& kept = *block.kept;
  const CountsAsRecomputed counts(context_);
  norm_forward(kept.normed_input, {}, kept.input_mean, kept.input_rstd, block.input, {},
               block.attention_norm_weight, block.attention_norm_bias);
  block.attention->recompute(context_, sequential_ ? branch_out_ : TensorView{}, kept.normed_input,
                             visibility_);
  if (sequential_)
    norm_forward(kept.normed_middle, kept.middle, kept.middle_mean, kept.middle_rstd, block.input,
                 branch_out_, block.ffn_norm_weight, block.ffn_norm_bias);
  block.feed_forward->recompute(context_, sequential_ ? kept.normed_middle : kept.normed_input,
                                *scratch_);
  activations_of_ = layer;
}

void LongNet::logits(const TensorView& out, int64_t begin) {
  check_forward("logits");
  linear_forward(context_, out, hidden_.slice(0, begin, out.shape[0]), output_weight_, {});
}

QueryKeyValue LongNet::attended_inputs(int64_t layer) const {
  LN_CHECK(!recompute_, "a model that recomputes does not keep layer {}'s inputs", layer);
  check_forward("attended_inputs");
  return blocks_[layer].attention->attended_inputs();
}

void LongNet::chunked_loss(const TensorView& targets, double scale, bool with_gradient) {
  Range range(context_, "loss");
  check_forward("loss");
  LN_CHECK(targets.elements() == rows_, "targets {}, this rank holds {} x {}", targets.describe(),
           batch_, local_tokens_);
  const TensorView flat_targets = targets.view({rows_});
  cross_entropy_begin(context_, loss_sums_);
  const int64_t chunk = chunk_logits_.shape[0];
  for_pieces(context_, rows_, chunk, [&](int64_t begin, int64_t count) {
    const TensorView chunk_logits = chunk_logits_.slice(0, 0, count);  // [c, V]
    const TensorView chunk_hidden = hidden_.slice(0, begin, count);    // [c, C]
    linear_forward(context_, chunk_logits, chunk_hidden, output_weight_, {});
    cross_entropy(context_, loss_sums_, chunk_logits, flat_targets.slice(0, begin, count),
                  static_cast<float>(scale), with_gradient);
    context_.keep_pace();
    if (!with_gradient) return;
    TensorView chunk_grad = chunk_logits;  // [c, V], which the loss has overwritten
    if (rounded_chunk_grad_.defined()) {
      chunk_grad = rounded_chunk_grad_.slice(0, 0, count);
      cast(context_, chunk_grad, chunk_logits);
    }
    linear_backward_weight(context_, grad_output_weight_, {}, chunk_grad, chunk_hidden);
    linear_backward_input(context_, grad_normed_.slice(0, begin, count), chunk_grad,
                          output_weight_);
  });
}

/// Counted targets scale nothing when nothing runs; every target is taken as one that counts.
CrossEntropyResult LongNet::loss_result() {
  return context_.counting() ? CrossEntropyResult{0.0, rows_}
                             : cross_entropy_result(context_, loss_sums_);
}

CrossEntropyResult LongNet::loss(const TensorView& targets) {
  chunked_loss(targets, 0, false);
  return loss_result();
}

CrossEntropyResult LongNet::loss_and_backward(const TensorView& targets, double scale,
                                              const GradientsReady& ready,
                                              const TensorView& grad_vectors) {
  LN_CHECK(grad_stream_.defined(), "backward of a model built without gradients");
  chunked_loss(targets, scale, true);  // fills grad_normed_
  backward_blocks(ready, grad_vectors);
  return loss_result();
}

void LongNet::backward_hidden(const TensorView& grad_hidden, const GradientsReady& ready,
                              const TensorView& grad_vectors) {
  LN_CHECK(grad_stream_.defined(), "backward of a model built without gradients");
  LN_CHECK(grad_hidden.elements() == grad_normed_.elements() && grad_hidden.contiguous(),
           "gradient {} of hidden {}", grad_hidden.describe(), grad_normed_.describe());
  copy(context_, grad_normed_, grad_hidden);
  backward_blocks(ready, grad_vectors);
}

/// The stream's gradient as an operand of products.
const TensorView& LongNet::stream_gradient() {
  if (!rounded_grad_stream_.defined()) return grad_stream_;
  cast(context_, rounded_grad_stream_, grad_stream_);
  return rounded_grad_stream_;
}

void LongNet::backward_blocks(const GradientsReady& ready, const TensorView& grad_vectors) {
  const Phase phase("backward");
  // grad_stream_: gradient of the residual stream at the point reached; grad_normed_: of a norm's
  // output.
  check_forward("backward");
  forward_kept_ = false;
  const auto norm = [&](const TensorView& grad_weight, const TensorView& grad_bias,
                        const TensorView& x, const TensorView& mean, const TensorView& rstd,
                        const TensorView& weight, bool accumulate) {
    Range range(context_, "norm");
    layer_norm_backward(context_,
                        {.grad_x = as_rows(grad_stream_),
                         .grad_weight = grad_weight,
                         .grad_bias = grad_bias,
                         .grad_out = as_rows(grad_normed_),
                         .x = as_rows(x),
                         .mean = as_stat(mean),
                         .rstd = as_stat(rstd),
                         .weight = weight,
                         .accumulate = accumulate},
                        scratch_->reduction);
  };
  const auto report = [&](const ParameterRange& range) {
    if (ready) ready(range);
  };
  // hidden = LayerNorm(final_sum)
  norm(grad_final_weight_, grad_final_bias_, final_sum_, final_mean_, final_rstd_, final_weight_,
       false);
  report(head_range_);
  for (int64_t layer = config_.layers - 1; layer >= 0; --layer) {
    if (recompute_) recompute_block(layer);
    Block& block = blocks_[layer];
    BlockActivations& kept = *block.kept;
    if (sequential_) {
      // stream = middle + feed_forward(LayerNorm(middle))
      block.feed_forward->backward(context_, grad_normed_, stream_gradient(), kept.normed_middle,
                                   false, *scratch_);
      norm(block.grad_ffn_norm_weight, block.grad_ffn_norm_bias, kept.middle, kept.middle_mean,
           kept.middle_rstd, block.ffn_norm_weight, true);
      // middle = input + attention(LayerNorm(input))
      block.attention->backward(context_, grad_normed_, stream_gradient(), kept.normed_input, false,
                                visibility_, *scratch_);
    } else {
      // stream = input + attention(n) + feed_forward(n), n = LayerNorm(input)
      const TensorView& grad_out = stream_gradient();
      block.feed_forward->backward(context_, grad_normed_, grad_out, kept.normed_input, false,
                                   *scratch_);
      block.attention->backward(context_, grad_normed_, grad_out, kept.normed_input, true,
                                visibility_, *scratch_);
    }
    norm(block.grad_attention_norm_weight, block.grad_attention_norm_bias, block.input,
         kept.input_mean, kept.input_rstd, block.attention_norm_weight, true);
    context_.keep_pace();
    activations_of_ = -1;
    report(layer_ranges_[layer]);
  }
  // embedded = table[tokens], or the given vectors
  Range range(context_, "embed");
  if (tokens_.defined())
    embedding_backward(context_, grad_embedding_, grad_stream_, tokens_, embedding_workspace_);
  if (grad_vectors.defined()) {
    LN_CHECK(grad_vectors.elements() == grad_stream_.elements() && grad_vectors.contiguous(),
             "grad_vectors {}", grad_vectors.describe());
    copy(context_, grad_vectors, grad_stream_);
  }
  report(embedding_range_);
}

}  // namespace longnet
