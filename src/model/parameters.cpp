// See parameters.h. The order of add_group calls below *is* the buffer's order.
#include "model/parameters.h"

#include <cmath>

#include "kernels/fill/fill.h"
#include "kernels/random/random.h"

namespace longnet {

ParameterLayout::ParameterLayout(const ModelConfig& config) {
  const int64_t c = config.dim, f = config.ffn_dim, d = config.head_dim();
  const bool sub_ln = config.norm == "sub_ln";
  const bool swiglu = config.activation == "swiglu";
  const bool sequential = config.block == "sequential";
  const double magneto = sub_ln ? std::sqrt(std::log(2.0 * config.layers)) : 1.0;

  const auto matrix = [&](const std::string& name, int64_t out, int64_t in, double gain) {
    // Xavier: U(-a, a), a = gain sqrt(6 / (in + out)).
    return ParameterInfo{name + ".weight",
                         {out, in},
                         0,
                         out * in,
                         true,
                         Initialiser::kUniform,
                         gain * std::sqrt(6.0 / static_cast<double>(in + out))};
  };
  const auto vector = [&](const std::string& name, int64_t width, Initialiser initialiser) {
    return ParameterInfo{name, {width}, 0, width, false, initialiser, 0};
  };
  const auto add_linear = [&](const std::vector<std::string>& names, int64_t out, int64_t in,
                              const std::vector<double>& gains) {
    std::vector<ParameterInfo> weights, biases;
    for (size_t i = 0; i < names.size(); ++i) {
      weights.push_back(matrix(names[i], out, in, gains[i]));
      biases.push_back(vector(names[i] + ".bias", out, Initialiser::kZero));
    }
    add_group(weights);
    if (config.bias) add_group(biases);
  };
  const auto add_norm = [&](const std::string& name, int64_t width) {
    add_group({vector(name + ".weight", width, Initialiser::kOne)});
    add_group({vector(name + ".bias", width, Initialiser::kZero)});
  };

  if (!config.tie_embeddings) add_group({matrix("output_projection", config.vocab_size, c, 1.0)});
  add_norm("layer_norm", c);
  layer_begin_.assign(config.layers + 1, 0);
  for (int64_t layer = config.layers - 1; layer >= 0; --layer) {
    layer_begin_[layer + 1] = elements_;
    const std::string p = "layers." + std::to_string(layer) + ".";
    add_linear({p + "ffn.fc2"}, c, f, {magneto});
    if (sub_ln) add_norm(p + "ffn.ffn_layernorm", f);
    if (swiglu)
      add_linear({p + "ffn.fc1", p + "ffn.gate"}, f, c, {magneto, magneto});
    else
      add_linear({p + "ffn.fc1"}, f, c, {magneto});
    if (sequential) add_norm(p + "final_layer_norm", c);
    const std::string a = p + "self_attn.";
    add_linear({a + "out_proj"}, c, c, {magneto});
    if (sub_ln) add_norm(a + "inner_attn_ln", c);
    if (config.qk_norm) {
      add_norm(a + "q_norm", d);
      add_norm(a + "k_norm", d);
    }
    add_linear({a + "q_proj", a + "k_proj", a + "v_proj"}, c, c, {1.0, 1.0, magneto});
    add_norm(p + "self_attn_layer_norm", c);
  }
  layer_begin_[0] = elements_;
  add_group({{"embed_tokens.weight",
              {config.vocab_size, c},
              0,
              config.vocab_size * c,
              true,
              Initialiser::kNormal,
              1.0 / std::sqrt(static_cast<double>(c))}});
}

void ParameterLayout::add_group(const std::vector<ParameterInfo>& group) {
  for (ParameterInfo info : group) {
    info.offset = elements_;
    elements_ += info.elements;
    parameter_count_ += info.elements;
    index_[info.name] = parameters_.size();
    parameters_.push_back(std::move(info));
  }
  constexpr int64_t kPad = kAlignment / static_cast<int64_t>(sizeof(float));
  elements_ = (elements_ + kPad - 1) / kPad * kPad;
}

const ParameterInfo& ParameterLayout::find(const std::string& name) const {
  const auto it = index_.find(name);
  if (it == index_.end()) throw Error("the model has no parameter {}", name);
  return parameters_[it->second];
}

TensorView ParameterLayout::view(const TensorView& flat, const std::string& name) const {
  if (!contains(name)) return {};
  return fused_view(flat, name, 1);
}

TensorView ParameterLayout::fused_view(const TensorView& flat, const std::string& first_name,
                                       int64_t count) const {
  if (!contains(first_name)) return {};
  const ParameterInfo& first = find(first_name);
  char* data = static_cast<char*>(flat.data) + first.offset * dtype_size(flat.dtype);
  if (first.shape.size() == 1)
    return TensorView(data, flat.dtype, {count * first.shape[0]}, flat.device);
  return TensorView(data, flat.dtype, {count * first.shape[0], first.shape[1]}, flat.device);
}

ParameterRange ParameterLayout::layer_range(int64_t layer) const {
  // layer_begin_[l + 1] is where layer l begins; layers lie from the last to the first.
  return {layer_begin_[layer + 1], layer == 0 ? layer_begin_[0] : layer_begin_[layer]};
}

void initialise_parameters(Context& context, const ParameterLayout& layout, const TensorView& flat,
                           uint64_t seed) {
  LN_CHECK(flat.elements() == layout.elements(), "flat buffer of {}, layout has {} elements",
           flat.describe(), layout.elements());
  fill(context, flat, 0.0f);
  for (const ParameterInfo& info : layout.parameters()) {
    const TensorView values = flat.slice(0, info.offset, info.elements);
    switch (info.initialiser) {
      case Initialiser::kZero:
        break;
      case Initialiser::kOne:
        fill(context, values, 1.0f);
        break;
      case Initialiser::kUniform:
        fill_uniform(context, values, seed, info.name, info.scale);
        break;
      case Initialiser::kNormal:
        fill_normal(context, values, seed, info.name, info.scale);
        break;
    }
  }
}

}  // namespace longnet
