// See dilated_attention.h: an AttentionLayer with parameters and memory of its own.
#include "model/dilated_attention.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "core/no_exchange.h"
#include "kernels/fill/fill.h"
#include "model/layers.h"

namespace longnet {
namespace {

const std::string kPrefix = "layers.0.self_attn.";

ModelConfig to_model_config(const DilatedAttentionConfig& config) {
  ModelConfig model;
  // A model of one block; only its attention half is used, so the rest is as small as possible.
  model.vocab_size = 1;
  model.layers = 1;
  model.ffn_dim = 1;
  model.dim = config.dim;
  model.heads = config.heads;
  model.branches = config.branches;
  model.causal = config.causal;
  model.head_offset = config.head_offset;
  model.position = config.position;
  model.rope_base = config.rope_base;
  model.xpos_scale_base = config.xpos_scale_base;
  model.qk_norm = config.qk_norm;
  model.norm = config.sub_norm ? "sub_ln" : "pre_ln";
  model.bias = config.bias;
  model.layer_norm_eps = config.layer_norm_eps;
  Config whole;
  whole.model = model;
  check_config(whole);
  return model;
}

}  // namespace

struct DilatedAttention::Impl {
  explicit Impl(const DilatedAttentionConfig& config)
      : model(to_model_config(config)),
        layout(model),
        context({.device = {}, .threads = config.threads, .counting = false}),
        parameter_arena("parameters"),
        gradient_arena("gradients") {
    parameters = parameter_arena.allocate(DType::kF32, {layout.elements()});
    gradients = gradient_arena.allocate_zeroed(DType::kF32, {layout.elements()});
    initialise_parameters(context, layout, parameters, config.seed);
  }

  /// Memory for sequences of this shape; the last shape's is kept.
  void prepare(int64_t new_batch, int64_t tokens) {
    if (layer && new_batch == batch && tokens == local_tokens) return;
    layer.reset();
    attention.reset();
    scratch.reset();
    workspace.emplace("workspace");
    activations.emplace("activations");
    batch = new_batch;
    local_tokens = tokens;
    const SequencePlan plan = split_plan ? *split_plan
                                         : SequencePlan(tokens, 1, 0, model.heads, model.branches,
                                                        model.head_offset_mode());
    attention.emplace(context, plan, batch,
                      DilatedAttentionSettings{.head_dim = model.head_dim(),
                                               .causal = model.causal,
                                               .rotary = rotary_options(model),
                                               .scale = 0,
                                               .training = true,
                                               .dtype = DType::kF32},
                      exchange != nullptr ? *exchange : no_exchange, *workspace);
    const TensorView grad_qkv = workspace->allocate(DType::kF32, {batch * tokens, 3 * model.dim});
    scratch.emplace(context, model, batch * tokens, 0, DType::kF32, true, grad_qkv, *workspace);
    layer.emplace(model, layout, kPrefix, FlatBuffers{parameters, parameters, gradients},
                  *attention, batch, tokens,
                  AttentionActivations(model, batch, tokens, DType::kF32, *activations),
                  *activations);
    input = activations->allocate(DType::kF32, {batch * tokens, model.dim});
  }

  std::span<float> tensor(const TensorView& flat, const std::string& name) const {
    const ParameterInfo& info = layout.find(kPrefix + name);
    return {flat.f32() + info.offset, static_cast<size_t>(info.elements)};
  }

  ModelConfig model;
  ParameterLayout layout;
  Context context;
  Arena parameter_arena, gradient_arena;
  TensorView parameters, gradients;
  NoExchange no_exchange;
  KeyValueExchange* exchange = nullptr;
  std::optional<SequencePlan> split_plan;
  int64_t batch = 0, local_tokens = 0;
  std::optional<Arena> workspace, activations;
  std::optional<DilatedAttentionOperator> attention;
  std::optional<LayerScratch> scratch;
  std::optional<AttentionLayer> layer;
  TensorView input;  // [T, C] of the last forward
};

DilatedAttention::DilatedAttention(const DilatedAttentionConfig& config)
    : impl_(std::make_unique<Impl>(config)) {}
DilatedAttention::~DilatedAttention() = default;
DilatedAttention::DilatedAttention(DilatedAttention&&) noexcept = default;
DilatedAttention& DilatedAttention::operator=(DilatedAttention&&) noexcept = default;

void DilatedAttention::set_sequence(const SequencePlan& plan, KeyValueExchange& exchange) {
  LN_CHECK(plan.heads() == impl_->model.heads && plan.branches() == impl_->model.branches &&
               plan.mode() == impl_->model.head_offset_mode(),
           "the plan's heads, branches or head offsets are not this module's");
  impl_->split_plan = plan;
  impl_->exchange = &exchange;
  impl_->layer.reset();
}

void DilatedAttention::forward(std::span<float> y, std::span<const float> x, int64_t batch,
                               int64_t tokens) {
  Impl& impl = *impl_;
  const int64_t size = batch * tokens * impl.model.dim;
  LN_CHECK(batch >= 1 && tokens >= 0, "batch {}, tokens {}", batch, tokens);
  LN_CHECK(static_cast<int64_t>(x.size()) == size && static_cast<int64_t>(y.size()) == size,
           "x has {} and y {} elements, [{}, {}, {}] has {}", x.size(), y.size(), batch, tokens,
           impl.model.dim, size);
  LN_CHECK(!impl.split_plan || impl.split_plan->local_tokens() == tokens,
           "{} tokens, but this rank's part of the sequence has {}", tokens,
           impl.split_plan->local_tokens());
  impl.prepare(batch, tokens);
  if (size == 0) return;  // a rank without tokens shares no segment
  impl.context.set_progress([&impl] {
    if (impl.exchange != nullptr) impl.exchange->progress();
  });
  std::copy(x.begin(), x.end(), impl.input.f32());
  const TensorView out(y.data(), DType::kF32, {batch * tokens, impl.model.dim});
  impl.layer->forward(impl.context, out, impl.input, false, {});
}

std::vector<float> DilatedAttention::forward(std::span<const float> x, int64_t batch,
                                             int64_t tokens) {
  std::vector<float> y(x.size());
  forward(y, x, batch, tokens);
  return y;
}

void DilatedAttention::backward(std::span<float> grad_x, std::span<const float> grad_y) {
  Impl& impl = *impl_;
  LN_CHECK(impl.layer.has_value(), "backward without a forward");
  const auto size = static_cast<size_t>(impl.input.elements());
  LN_CHECK(grad_x.size() == size && grad_y.size() == size,
           "grad_x has {} and grad_y {} elements, the last forward had {}", grad_x.size(),
           grad_y.size(), size);
  if (size == 0) return;
  const int64_t rows = impl.batch * impl.local_tokens;
  // The kernels take one kind of view; grad_y is only read.
  const TensorView grad_out(const_cast<float*>(grad_y.data()), DType::kF32, {rows, impl.model.dim});
  const TensorView grad_in(grad_x.data(), DType::kF32, {rows, impl.model.dim});
  impl.layer->backward(impl.context, grad_in, grad_out, impl.input, false, {}, *impl.scratch);
}

std::vector<float> DilatedAttention::backward(std::span<const float> grad_y) {
  std::vector<float> grad_x(grad_y.size());
  backward(grad_x, grad_y);
  return grad_x;
}

std::span<float> DilatedAttention::parameters() {
  return {impl_->parameters.f32(), static_cast<size_t>(impl_->layout.elements())};
}
std::span<float> DilatedAttention::gradients() {
  return {impl_->gradients.f32(), static_cast<size_t>(impl_->layout.elements())};
}
std::span<float> DilatedAttention::parameter(const std::string& name) {
  return impl_->tensor(impl_->parameters, name);
}
std::span<float> DilatedAttention::gradient(const std::string& name) {
  return impl_->tensor(impl_->gradients, name);
}
std::vector<std::string> DilatedAttention::parameter_names() const {
  std::vector<std::string> names;
  for (const ParameterInfo& info : impl_->layout.parameters())
    if (info.name.rfind(kPrefix, 0) == 0) names.push_back(info.name.substr(kPrefix.size()));
  return names;
}
void DilatedAttention::zero_gradients() { fill(impl_->context, impl_->gradients, 0.0f); }

}  // namespace longnet
