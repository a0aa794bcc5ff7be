// Rules of a Config: of each key's value by itself, and between keys. All rules that need neither
// the data nor the number of ranks are here; none depends on where a value came from.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/config_keys.h"
#include "core/text.h"

namespace longnet {
namespace internal {
namespace {

constexpr int64_t kMinHeadDim = 8;  // what the attention kernels are written for
constexpr int64_t kMaxHeadDim = 256;
constexpr size_t kMaxBranches = 16;
constexpr int64_t kMaxXposSegment = 49152;  // tokens; beyond it far keys score 0 (longnet.md)

bool in_limits(double value, const Limits& limits) {
  if (!std::isfinite(value)) return false;
  const bool low = limits.above ? value > limits.low : value >= limits.low;
  const bool high = limits.below ? value < limits.high : value <= limits.high;
  return low && high;
}

std::optional<std::string> number_problem(const Key& key, double value, const std::string& shown) {
  if (in_limits(value, key.limits)) return std::nullopt;
  return fmt::format("{} is out of range; allowed: {}", shown, key.allowed());
}

/// Why a word is refused that users ask for and that is not supported.
std::optional<std::string> word_refusal(const Key& key, const std::string& word) {
  const auto is = [&](std::initializer_list<const char*> names) {
    return std::any_of(names.begin(), names.end(),
                       [&](const char* name) { return edit_distance(word, name) == 0; });
  };
  if (key.name == "run.dtype") {
    if (is({"bfloat16"})) return "use the name bf16";
    if (is({"fp16", "f16", "float16", "half"}))
      return "fp16 is not supported, because its range needs loss scaling; use bf16 or f32";
    if (is({"fp32", "float32", "float"})) return "use the name f32";
  }
  if (key.name == "run.backend" && is({"gpu"})) return "use the name cuda";
  return std::nullopt;
}

std::optional<std::string> branches_problem(const std::vector<Branch>& branches) {
  if (branches.empty() || branches.size() > kMaxBranches)
    return fmt::format("{} branches; allowed: 1 to {} pairs [segment length, dilation]",
                       branches.size(), kMaxBranches);
  for (const Branch& b : branches) {
    const std::string shown = fmt::format("[{}, {}]", b.segment_length, b.dilation);
    constexpr int64_t kMost = int64_t{1} << 40;
    if (b.segment_length < 1 || b.segment_length > kMost)
      return fmt::format("branch {}: segment length {} is out of range; allowed: 1 to {}", shown,
                         b.segment_length, kMost);
    if (b.dilation < 1 || b.dilation > kMost)
      return fmt::format("branch {}: dilation {} is out of range; allowed: 1 to {}", shown,
                         b.dilation, kMost);
  }
  return std::nullopt;
}

/// A folder's file endings: pieces between commas that begin with a point.
std::optional<std::string> extensions_problem(const std::string& text) {
  if (text.empty()) return std::nullopt;
  size_t at = 0;
  while (at <= text.size()) {
    const size_t end = std::min(text.find(',', at), text.size());
    const std::string piece = text.substr(at, end - at);
    if (piece.size() < 2 || piece[0] != '.')
      return fmt::format("{} is not a file ending; write endings with the dot, such as \".c,.h\"",
                         in_quotes(piece));
    at = end + 1;
  }
  return std::nullopt;
}

/// What no text of a key may hold: checkpoints, metrics and logs are UTF-8, and paths end at a zero
/// byte.
std::optional<std::string> bytes_problem(const Key& key, const std::string& text) {
  if (const auto place = not_utf8(text))
    return fmt::format("{} is not UTF-8 at byte {} (counted from 0); {}", in_quotes(text), *place,
                       key.path ? "rename the file or folder, or reach it by a symbolic link"
                                : "write the text as UTF-8");
  if (key.path && text.find('\0') != std::string::npos)
    return fmt::format("{} holds a zero byte, which no path can", in_quotes(text));
  return std::nullopt;
}

std::optional<std::string> text_problem(const Key& key, const std::string& text) {
  if (const auto problem = bytes_problem(key, text)) return problem;
  if (key.name == "data.extensions") return extensions_problem(text);
  if (text.empty() &&
      (key.name == "run.folder" || key.name == "data.cache" || key.name == "checkpoint.resume"))
    return std::string("must not be empty");
  if (key.choices.empty() ||
      std::find(key.choices.begin(), key.choices.end(), text) != key.choices.end())
    return std::nullopt;
  if (const auto reason = word_refusal(key, text)) return reason;
  const std::string near = nearest(text, key.choices);
  return fmt::format("{} is not one of {}{}", in_quotes(text), joined(key.choices),
                     near.empty() ? "" : fmt::format("; did you mean {}?", near));
}

/// The numbers of heads nearest to `wanted` that divide dim into supported head dimensions.
std::vector<int64_t> working_heads(int64_t dim, int64_t wanted, bool even) {
  std::vector<int64_t> found;
  for (int64_t head_dim = kMinHeadDim; head_dim <= kMaxHeadDim; ++head_dim)
    if (dim % head_dim == 0 && !(even && head_dim % 2)) found.push_back(dim / head_dim);
  std::sort(found.begin(), found.end(), [&](int64_t a, int64_t b) {
    return std::pair(std::abs(a - wanted), a) < std::pair(std::abs(b - wanted), b);
  });
  if (found.size() > 2) found.erase(found.begin() + 2, found.end());
  std::sort(found.begin(), found.end());
  return found;
}

/// The dims nearest to `wanted`, below and above, that `heads` divides into such dimensions.
std::vector<int64_t> working_dims(int64_t heads, int64_t wanted, bool even) {
  const int64_t step = even ? 2 * heads : heads;
  const int64_t least = (kMinHeadDim * heads + step - 1) / step * step;
  const int64_t most = kMaxHeadDim * heads;
  std::vector<int64_t> found;
  for (const int64_t dim : {wanted / step * step, wanted / step * step + step}) {
    const int64_t clamped = std::clamp(dim, least, most);
    if (found.empty() || found.back() != clamped) found.push_back(clamped);
  }
  return found;
}

std::string or_list(const std::vector<int64_t>& values) {
  return fmt::format("{}", fmt::join(values, " or "));
}

/// What to write instead, near the present pair.
std::string heads_remedy(const ModelConfig& m, bool even) {
  const std::vector<int64_t> heads = working_heads(m.dim, m.heads, even);
  const std::string dims = fmt::format("model.dim {}", or_list(working_dims(m.heads, m.dim, even)));
  return heads.empty() ? "nearest: " + dims
                       : fmt::format("nearest: model.heads {}, or {}", or_list(heads), dims);
}

std::optional<Problem> model_problem(const Config& config) {
  const ModelConfig& m = config.model;
  const bool rotates = m.position != "none";
  const std::vector<std::string> heads_keys{"model.heads", "model.dim"};
  if (m.dim % m.heads != 0)
    return Problem{heads_keys, fmt::format("model.dim {} is not divisible by model.heads {}; {}",
                                           m.dim, m.heads, heads_remedy(m, rotates))};
  const int64_t head_dim = m.head_dim();
  if (head_dim < kMinHeadDim || head_dim > kMaxHeadDim)
    return Problem{
        heads_keys,
        fmt::format("model.dim {} / model.heads {} is a head dimension of {}; allowed: "
                    "{} to {}; {}",
                    m.dim, m.heads, head_dim, kMinHeadDim, kMaxHeadDim, heads_remedy(m, rotates))};
  if (rotates && head_dim % 2 != 0)
    return Problem{{"model.heads", "model.dim", "model.position"},
                   fmt::format("model.dim {} / model.heads {} is a head dimension of {}; "
                               "model.position {} needs an even one; {}",
                               m.dim, m.heads, head_dim, m.position, heads_remedy(m, true))};
  if (m.position == "xpos") {
    if (!m.causal)
      return Problem{{"model.position", "model.causal"},
                     "model.position xpos needs model.causal true; set model.position to rope"};
    for (const Branch& b : m.branches) {
      const int64_t reach = std::min(b.segment_length, config.train.sequence_length);
      if (reach > kMaxXposSegment)
        return Problem{
            {"model.branches", "train.sequence_length", "model.position"},
            fmt::format("model.branches: [{}, {}] spans {} tokens of a sequence; allowed with "
                        "model.position xpos: {}; set model.position to rope",
                        b.segment_length, b.dilation, reach, kMaxXposSegment)};
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::string> value_problem(const Key& key, const Config& config) {
  const Slot slot = key.slot(const_cast<Config&>(config));  // only read
  if (const auto* v = std::get_if<int64_t*>(&slot))
    return number_problem(key, static_cast<double>(**v), fmt::format("{}", **v));
  if (const auto* v = std::get_if<double*>(&slot))
    return number_problem(key, **v, fmt::format("{}", **v));
  if (const auto* v = std::get_if<std::string*>(&slot)) return text_problem(key, **v);
  if (const auto* v = std::get_if<std::vector<std::string>*>(&slot)) {
    for (const std::string& text : **v) {
      if (text.empty()) return std::string("a path in the list is empty");
      if (const auto problem = bytes_problem(key, text)) return problem;
    }
    return std::nullopt;
  }
  if (const auto* v = std::get_if<std::vector<Branch>*>(&slot)) return branches_problem(**v);
  return std::nullopt;
}

std::optional<Problem> find_problem(const Config& config) {
  for (const Key& key : keys())
    if (const auto text = value_problem(key, config))
      return Problem{{key.name}, fmt::format("{}: {}", key.name, *text)};
  if (auto problem = model_problem(config)) return problem;
  if (config.run.attention != "auto" && config.run.backend == "cpu")
    return Problem{{"run.attention", "run.backend"},
                   fmt::format("run.attention {} selects GPU kernels; with run.backend cpu only "
                               "auto is allowed; set run.attention to auto, or run.backend to cuda",
                               config.run.attention)};
  if (config.train.sample_every > 0 && !config.model.causal)
    return Problem{{"train.sample_every", "model.causal"},
                   fmt::format("train.sample_every {} needs model.causal true: a model that sees "
                               "later tokens cannot continue a text; set train.sample_every to 0",
                               config.train.sample_every)};
  if (config.train.sample_every > 0 && config.train.sample_prompt.empty())
    return Problem{{"train.sample_prompt", "train.sample_every"},
                   "train.sample_prompt is empty; a sample needs at least one byte to continue"};
  return std::nullopt;
}

std::optional<std::string> refusal(const std::string& name) {
  const std::string word = name.substr(name.rfind('.') + 1);
  const auto has = [&](const char* part) { return word.find(part) != std::string::npos; };
  if (has("dropout"))
    return "dropout is not supported: the paper trains without it; leave the key out";
  if (has("kv_heads") || has("key_value_heads") || has("query_groups"))
    return "grouped-query attention is not supported: heads that share a key would need one "
           "dilation offset; leave the key out (every head has its own key and value)";
  if (has("tensor_") || word == "tensor" || word == "tp" || word == "tp_size")
    return "tensor parallelism is not supported: ranks share sequences, not matrices; use "
           "parallel.sequence_ranks or parallel.data_ranks";
  if (has("pipeline") || word == "pp" || word == "pp_size")
    return "pipeline parallelism is not supported: every rank holds all layers; use "
           "parallel.sequence_ranks or parallel.data_ranks";
  if (word == "fp16" || word == "half" || word == "loss_scale")
    return "fp16 is not supported, because its range needs loss scaling; use run.dtype bf16 or f32";
  return std::nullopt;
}

}  // namespace internal

HeadOffset ModelConfig::head_offset_mode() const {
  if (head_offset == "interleaved") return HeadOffset::kInterleaved;
  if (head_offset == "blocked") return HeadOffset::kBlocked;
  throw Error("model.head_offset: {} is not one of interleaved, blocked", in_quotes(head_offset));
}

void check_config(const Config& config) {
  if (const auto problem = internal::find_problem(config)) throw Error(problem->text);
}

void check_next_token_loss(const Config& config) {
  if (!config.model.causal)
    throw Error(
        "model.causal=false: training and evaluation score the next token, which a model without "
        "the causal mask sees, so the loss would be meaningless; set model.causal=true (plan, "
        "bench and attend support both)");
}

}  // namespace longnet
