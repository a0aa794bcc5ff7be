// The table of keys and what is printed from it: values, to_yaml(), configs/base.yaml, the help.
#include "core/config_keys.h"

#include <fmt/format.h>

#include <cmath>

#include "core/path.h"
#include "core/text.h"

namespace longnet {
namespace internal {
namespace {

Limits range(double low, double high) { return {low, high, false, false}; }
Limits at_least(double low) { return {low, std::numeric_limits<double>::infinity(), false, false}; }
Limits above(double low, double high = std::numeric_limits<double>::infinity()) {
  return {low, high, true, false};
}
Limits inside(double low, double high) { return {low, high, true, true}; }
Limits up_to_below(double low, double high) { return {low, high, false, true}; }

constexpr double kMaxTokens = 1099511627776.0;  // 2^40: products with channels stay inside int64
constexpr double kMaxCount = 1e15;              // exact in a double, far from int64 overflow

/// "section.name" and the way to it, for the three functions below.
#define KEY(member) #member, [](Config & c) -> Slot { return &c.member; }

using Way = Slot (*)(Config&);

Key number(const char* name, Way slot, const char* unit, const Limits& limits, const char* help) {
  return {name, slot, unit, limits, {}, help};
}
Key word(const char* name, Way slot, std::vector<std::string> choices, const char* help) {
  return {name, slot, "", {}, std::move(choices), help};
}
/// Any text, a switch, or a list.
Key other(const char* name, Way slot, const char* unit, const char* help) {
  return {name, slot, unit, {}, {}, help};
}
Key path(const char* name, Way slot, const char* help) {
  return {name, slot, "", {}, {}, help, true};
}

std::vector<Key> make_keys() {
  // clang-format off
  return {
      number(KEY(model.vocab_size), "tokens", range(1, 16777216),
           "V, size of the vocabulary; 256 for bytes"),
      number(KEY(model.dim), "channels", range(1, 1048576),
           "C, width of the model; a multiple of model.heads"),
      number(KEY(model.layers), "layers", range(1, 4096), "number of Transformer layers"),
      number(KEY(model.heads), "heads", range(1, 4096),
           "H, attention heads; D = C / H must lie in 8..256 and be even with xpos or rope"),
      number(KEY(model.ffn_dim), "channels", range(1, 4194304),
           "F, width of the feed-forward layer"),
      other(KEY(model.branches), "tokens",
           "dilated attention: [segment length w, dilation r] of each branch"),
      other(KEY(model.causal), "", "a token sees only itself and earlier tokens (decoder)"),
      word(KEY(model.head_offset), {"interleaved", "blocked"},
           "first kept token of head h: h mod r (the paper), or floor(h / ceil(H / r)) "
           "(torchscale checkpoints)"),
      word(KEY(model.position), {"xpos", "rope", "none"},
           "position encoding; xpos needs model.causal and segments of at most 49152 tokens"),
      number(KEY(model.xpos_scale_base), "tokens", above(0, 1e12),
           "distance over which xpos decays by one power of its scale"),
      number(KEY(model.rope_base), "", above(1, 1e15),
           "base of the rotation angles; raise it for sequences above 47K tokens"),
      word(KEY(model.norm), {"sub_ln", "pre_ln"},
           "sub_ln: Magneto, also norms before out_proj and fc2 (the paper); pre_ln: plain"),
      word(KEY(model.block), {"sequential", "parallel"},
           "sequential: attention, then feed-forward; parallel: both from one shared norm, added"),
      word(KEY(model.activation), {"gelu", "swiglu"}, "of the feed-forward layer"),
      other(KEY(model.qk_norm), "", "LayerNorm per head on queries and keys"),
      other(KEY(model.bias), "", "biases in the linear layers"),
      other(KEY(model.tie_embeddings), "", "the output projection is the embedding matrix"),
      number(KEY(model.layer_norm_eps), "", above(0, 1),
           "added to the variance in every LayerNorm"),

      path(KEY(data.train), "training data: files, folders or globs; one text or a list"),
      path(KEY(data.validation),
           "validation data: files, folders or globs; empty: split off the training data (data.split)"),
      word(KEY(data.format), {"auto", "bytes", "tokens_u16", "tokens_u32"},
           "bytes: every byte is a token; tokens_*: binary token ids; auto: what the file is"),
      word(KEY(data.split), {"fraction", "enwik8"},
           "if data.validation is empty: data.validation_fraction from the end, or the 90/5/5 million bytes of enwik8"),
      number(KEY(data.validation_fraction), "", inside(0, 1),
           "share of the training data held out for validation"),
      number(KEY(data.separator), "byte", range(-1, 255),
           "separates the files of a folder; -1: no separator"),
      number(KEY(data.bytes_per_token), "bytes", at_least(0),
           "average of token files, for bits per byte; 0: unknown"),
      word(KEY(data.order), {"sequential", "shuffled"}, "order of the sequences in an epoch"),
      path(KEY(data.cache), "folder for unpacked and joined files"),
      other(KEY(data.extensions), "",
           "file endings to use from a folder, such as \".c,.h\"; empty: every file"),

      number(KEY(train.sequence_length), "tokens", range(1, kMaxTokens),
           "N, tokens of a whole sequence, over all ranks that share it"),
      number(KEY(train.batch_size), "sequences", range(1, 1048576),
           "B, sequences per replica and micro-step"),
      number(KEY(train.accumulation), "micro-steps", range(1, 1048576),
           "micro-steps per optimizer step"),
      number(KEY(train.steps), "steps", range(1, kMaxCount), "optimizer steps of the whole run"),
      number(KEY(train.seed), "", range(0, kMaxCount),
           "of initialisation, data order and sampling"),
      word(KEY(train.recompute), {"none", "layer"},
           "layer: the forward keeps only each layer's input, and the backward recomputes the layer: less memory, about a third more work, the same bits"),
      number(KEY(train.recompute_rows), "rows", range(1, kMaxTokens),
           "with train.recompute=layer a feed-forward layer with more rows on a rank works in parts "
           "of at most so many: less memory, weight gradients equal up to rounding"),
      number(KEY(train.evaluate_every), "steps", range(0, kMaxCount),
           "between evaluations on the validation data; 0: never"),
      number(KEY(train.evaluate_samples), "sequences", range(0, kMaxCount),
           "per evaluation; 0: all"),
      number(KEY(train.sample_every), "steps", range(0, kMaxCount),
           "between printed text samples; 0: never"),
      other(KEY(train.sample_prompt), "", "a sample continues this text"),
      number(KEY(train.sample_tokens), "tokens", range(1, 1073741824), "length of a sample"),
      word(KEY(train.on_spike), {"warn", "stop", "rollback"},
           "where a step's loss jumps (docs/files.md) or is not finite: warn and train on (not "
           "finite: end); end before the update; or go back to the last good checkpoint and leave "
           "out the data since"),
      number(KEY(train.max_rollbacks), "rollbacks", range(1, kMaxCount),
           "to one checkpoint, of train.on_spike=rollback; the next spike ends the run"),

      word(KEY(optimizer.name), {"adamw", "stable_adamw"},
           "stable_adamw limits each tensor's update (arXiv 2304.13013)"),
      number(KEY(optimizer.learning_rate), "", above(0, 10), "peak, reached after the warm-up"),
      number(KEY(optimizer.beta1), "", up_to_below(0, 1), "decay of the first moment"),
      number(KEY(optimizer.beta2), "", up_to_below(0, 1), "decay of the second moment"),
      number(KEY(optimizer.eps), "", above(0, 1), "added to the root of the second moment"),
      number(KEY(optimizer.weight_decay), "", range(0, 10), "on matrices only, decoupled"),
      number(KEY(optimizer.clip_norm), "", at_least(0),
           "largest L2 norm of the whole gradient; 0: no clipping"),
      word(KEY(optimizer.schedule), {"constant", "linear", "cosine", "polynomial"},
           "learning rate after the linear warm-up"),
      number(KEY(optimizer.warmup_steps), "steps", range(0, kMaxCount),
           "of linear warm-up; if train.steps is lower, a tenth of train.steps"),
      number(KEY(optimizer.final_ratio), "", range(0, 1),
           "learning rate at the last step as a share of the peak"),
      number(KEY(optimizer.power), "", above(0, 100), "of the polynomial schedule"),

      number(KEY(parallel.sequence_ranks), "ranks", range(0, 1048576),
           "ranks that share one sequence; 0: all ranks / data_ranks"),
      number(KEY(parallel.data_ranks), "ranks", range(1, 1048576),
           "replicas, each with its own sequences"),
      number(KEY(parallel.threads), "threads", range(0, 4096),
           "OpenMP threads per rank; 0: OpenMP's default"),
      number(KEY(parallel.bucket_mib), "MiB", range(1, 4096),
           "gradients are summed over ranks in buckets of this size"),
      number(KEY(parallel.timeout_s), "seconds", range(0, 1e9),
           "a wait for other ranks that takes longer ends the job; 0: never"),
      other(KEY(parallel.shard_optimizer), "",
           "each rank holds only the optimizer state of its share of the parameters (ZeRO stage 1)"),

      number(KEY(checkpoint.every), "steps", range(0, kMaxCount),
           "between checkpoints; 0: only at the end"),
      number(KEY(checkpoint.keep_last), "checkpoints", range(0, kMaxCount),
           "older ones are removed; 0: keep all"),
      path(KEY(checkpoint.resume),
           "auto: the latest in run.folder, if any; none; or the path of a checkpoint"),
      word(KEY(checkpoint.on_failure), {"continue", "stop"},
           "if both attempts to save a checkpoint fail: train until the next save is due, or stop; at the last step the run fails in either case"),
      other(KEY(checkpoint.accept_new_data), "",
           "resume even if the content of the training data differs from the checkpoint's"),

      path(KEY(run.folder), "folder of the log, metrics.jsonl and checkpoints"),
      other(KEY(run.overwrite), "",
           "with checkpoint.resume=none or a path: moves another run in the folder, or an earlier start from that path, to set-aside-N inside it"),
      word(KEY(run.backend), {"cpu", "cuda"},
           "device: the CPU, or one GPU per rank (in a build with CUDA)"),
      word(KEY(run.attention), {"auto", "cudnn", "native", "plain"},
           "attention kernels with run.backend cuda; auto: the first of cudnn, native and plain that supports the call"),
      word(KEY(run.dtype), {"f32", "bf16"},
           "bf16: matrix products, activations and exchanged keys and values; sums, the residual stream, trained weights and the optimizer stay f32"),
      word(KEY(run.log_level), {"debug", "info", "warn", "error"},
           "lowest level that is logged"),
      word(KEY(run.progress), {"auto", "on", "off"}, "progress bar; auto: on a terminal"),
      number(KEY(run.log_every), "steps", range(1, kMaxCount), "between lines about training"),
  };
  // clang-format on
}

#undef KEY

/// The shortest text that reads back to the same double; whole numbers up to 2^53 without a point.
std::string print_number(double value) { return fmt::format("{}", value == 0 ? 0.0 : value); }

std::string print_limit(double value) {
  if (value == std::floor(value) && std::abs(value) < 9e15)
    return fmt::format("{}", static_cast<int64_t>(value));
  return fmt::format("{}", value);
}

bool is_plain_word(const std::string& text) {
  if (text.empty()) return false;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '_' || c == '/' || c == '.';
    if (!plain) return false;
  }
  return text != "null" && text != "Null" && text != "NULL";
}

/// A YAML scalar: plain where that is safe, else in double quotes.
std::string print_text(const std::string& text) {
  if (is_plain_word(text)) return text;
  std::string quoted(1, '"');
  for (const char c : text) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (byte < 0x20 || byte == 0x7F) {
      quoted += fmt::format("\\x{:02x}", byte);
    } else {
      quoted += c;
    }
  }
  quoted += '"';
  return quoted;
}

struct Printer {
  bool path;  // "$" is written so that it is read back as it stands
  std::string text(const std::string& v) const { return print_text(path ? unexpanded_path(v) : v); }

  std::string operator()(const int64_t* v) const { return fmt::format("{}", *v); }
  std::string operator()(const double* v) const { return print_number(*v); }
  std::string operator()(const bool* v) const { return *v ? "true" : "false"; }
  std::string operator()(const std::string* v) const { return text(*v); }
  std::string operator()(const std::vector<std::string>* v) const {
    std::vector<std::string> words;
    for (const std::string& one : *v) words.push_back(text(one));
    return fmt::format("[{}]", joined(words));
  }
  std::string operator()(const std::vector<Branch>* v) const {
    std::vector<std::string> pairs;
    for (const Branch& b : *v)
      pairs.push_back(fmt::format("[{}, {}]", b.segment_length, b.dilation));
    return fmt::format("[{}]", joined(pairs));
  }
};

/// Words broken so that no line passes `width`; every line begins with `indent`.
std::string wrapped(const std::string& text, const std::string& indent, size_t width = 100) {
  std::string out, line = indent;
  bool empty = true;
  size_t at = 0;
  while (at < text.size()) {
    size_t end = text.find(' ', at);
    if (end == std::string::npos) end = text.size();
    if (!empty && line.size() + 1 + (end - at) > width) {
      out += line + "\n";
      line = indent;
      empty = true;
    }
    if (!empty) line += ' ';
    line += text.substr(at, end - at);
    empty = false;
    at = end + 1;
  }
  return out + line + "\n";
}

/// "[tokens: 1 to 64]", "[gelu | swiglu]"
std::string unit_and_allowed(const Key& key) {
  const std::string allowed = key.choices.empty() ? key.allowed() : joined(key.choices, " | ");
  return fmt::format("[{}{}{}]", key.unit, key.unit.empty() ? "" : ": ", allowed);
}

template <typename PrintLine>
std::string print_sections(const Config& config, PrintLine comment) {
  std::string out;
  std::string section;
  for (const Key& key : keys()) {
    if (key.section() != section) {
      if (!section.empty()) out += "\n";
      section = key.section();
      out += section + ":\n";
    }
    out += comment(key);
    out += fmt::format("  {}: {}\n", key.word(), key.print(config));
  }
  return out;
}

}  // namespace

std::string Key::type() const {
  Config config;
  switch (slot(config).index()) {
    case 0:
      return "integer";
    case 1:
      return "number";
    case 2:
      return "true | false";
    case 3:
      return choices.empty() ? "text" : "word";
    case 4:
      return "list of texts";
    default:
      return "list of [w, r]";
  }
}

std::string Key::allowed() const {
  Config config;
  switch (slot(config).index()) {
    case 0:
    case 1: {
      if (std::isinf(limits.high))
        return fmt::format("{} {}", limits.above ? "above" : "at least", print_limit(limits.low));
      if (limits.above || limits.below)
        return fmt::format("{} {} {} {}", limits.above ? "above" : "at least",
                           print_limit(limits.low), limits.below ? "and below" : "to",
                           print_limit(limits.high));
      return fmt::format("{} to {}", print_limit(limits.low), print_limit(limits.high));
    }
    case 2:
      return "true or false";
    case 3:
      return choices.empty() ? "any text" : joined(choices);
    case 4:
      return "a text or a list such as [a.txt, b.txt]";
    default:
      return "1 to 16 pairs such as [[2048, 1], [4096, 2]], each at least 1";
  }
}

std::string Key::print(const Config& config) const {
  // The slot is only read; a Config has no const twin of it.
  return std::visit(Printer{path}, slot(const_cast<Config&>(config)));
}

const std::vector<Key>& keys() {
  static const std::vector<Key> table = make_keys();
  return table;
}

const Key* find_key(const std::string& name) {
  for (const Key& key : keys())
    if (key.name == name) return &key;
  return nullptr;
}

std::vector<std::string> section_names() {
  std::vector<std::string> names;
  for (const Key& key : keys())
    if (names.empty() || names.back() != key.section()) names.push_back(key.section());
  return names;
}

}  // namespace internal

std::vector<ConfigKey> config_keys() {
  const Config defaults;
  std::vector<ConfigKey> rows;
  for (const internal::Key& key : internal::keys())
    rows.push_back({key.name, key.type(), key.unit, key.print(defaults), key.allowed(), key.help});
  return rows;
}

std::string to_yaml(const Config& config) {
  return internal::print_sections(config, [](const internal::Key&) { return std::string(); });
}

std::string base_yaml() {
  std::string out =
      "# Every key with its default. Printed from the table in src/core/config_keys.cpp; a test\n"
      "# compares the two. Other files in this folder contain only the keys that differ. After "
      "the\n"
      "# file's name, words such as train.batch_size=2 override single keys. In paths, ~ is the\n"
      "# home folder, $NAME an environment variable and $$ a dollar sign.\n\n";
  out += internal::print_sections(Config{}, [](const internal::Key& key) {
    return internal::wrapped(fmt::format("{} {}", key.help, internal::unit_and_allowed(key)),
                             "  # ");
  });
  return out;
}

std::string keys_help() {
  std::string out =
      "Keys, as written in a YAML file (section: {name: value}) or as words section.name=value:\n"
      "";
  const Config defaults;
  std::string section;
  for (const internal::Key& key : internal::keys()) {
    if (key.section() != section) {
      section = key.section();
      out += "\n" + section + "\n";
    }
    out += fmt::format("  {} = {}\n", key.name, key.print(defaults));
    out += internal::wrapped(fmt::format("{} {}", key.help, internal::unit_and_allowed(key)),
                             "      ");
  }
  return out;
}

}  // namespace longnet
