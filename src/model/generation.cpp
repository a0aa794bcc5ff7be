// See generation.h. Decoding runs the LongNet of training on one token, with an attention operator
// that appends the token's key and value to the caches and attends to them.
#include "model/generation.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "core/host_copy.h"
#include "core/no_exchange.h"
#include "kernels/embedding/embedding.h"
#include "kernels/linear/linear.h"
#include "kernels/random/random.h"
#include "model/longnet.h"

namespace longnet {
namespace {

/// Longest distance in tokens for which xPos factors stay finite (see check_config).
constexpr int64_t kXposReach = 49152;

/// Kept keys (rotated) and values of one layer and branch: the rows of the current segment, per
/// head.
struct SegmentCache {
  std::unique_ptr<Arena> memory;
  TensorView keys, values;    // [H capacity, D] f32 on the context's device
  std::vector<int64_t> rows;  // [H]
  int64_t capacity = 0;       // rows a head
};

class CachedAttention final : public AttentionOperator {
 public:
  CachedAttention(Context& context, const ModelConfig& config)
      : context_(context),
        config_(config),
        heads_(config.heads),
        head_dim_(config.head_dim()),
        rotary_(config.head_dim(), rotary_options(config)),
        caches_(config.layers) {
    for (const Branch& branch : config.branches) {
      std::vector<int64_t> offsets(heads_);
      for (int64_t h = 0; h < heads_; ++h)
        offsets[h] = head_offset(h, heads_, branch.dilation, config.head_offset_mode());
      head_offsets_.push_back(std::move(offsets));
    }
    for (auto& layer : caches_) layer = std::vector<SegmentCache>(config.branches.size());
    clear();
  }

  void clear() {
    token_ = 0;
    for (auto& layer : caches_)
      for (SegmentCache& cache : layer) cache.rows.assign(heads_, 0);
  }
  /// The token that the next forward is about.
  void set_token(int64_t token) { token_ = token; }

  Saved make_saved(Arena&) override { return {.layer = layers_++, .gathered = {}}; }

  void forward(const TensorView& out, const TensorView& lse, const QueryKeyValue& inputs,
               Saved& saved, const Visibility&) override {
    attention_begin(context_, out, lse);
    for (size_t branch = 0; branch < config_.branches.size(); ++branch) {
      append(saved.layer, branch, token_, 1, 0, inputs.key, inputs.value);
      attend(saved.layer, branch, out, lse, inputs.query);
    }
  }

  void recompute(const TensorView&, const TensorView&, const QueryKeyValue&, const Saved&,
                 const Visibility&) override {
    throw Error("generation has no backward");
  }
  void backward(const QueryKeyValue&, const TensorView&, const TensorView&, const TensorView&,
                const QueryKeyValue&, Saved&, const Visibility&) override {
    throw Error("generation has no backward");
  }

  /// Adds the keys and values of `count` tokens from `token` on, all of one segment, where heads
  /// keep them. key, value [1, L, H, D]: the first token lies at `slot`.
  void append(int64_t layer, size_t branch, int64_t token, int64_t count, int64_t slot,
              const TensorView& key, const TensorView& value) {
    const auto [w, r] = config_.branches[branch];
    SegmentCache& cache = caches_[layer][branch];
    const int64_t place = token % w;
    if (place == 0) std::fill(cache.rows.begin(), cache.rows.end(), 0);
    if (rotary_.options().position == Position::kXpos && place + count > kXposReach)
      throw Error(
          "xpos positions reach {} tokens from a segment's start, token {} is further in segment "
          "length {}; train with model.position=rope for longer texts",
          kXposReach, token + count - 1, w);
    HeadRows rows;
    rows.step = r;
    int64_t most = 0;
    bool any = false;
    for (int64_t h = 0; h < heads_; ++h) {
      const int64_t offset = head_offsets_[branch][h];
      // Row i of a segment is at place offset + i r.
      const auto rows_before = [&](int64_t end) {
        return (std::max(end - offset, int64_t{0}) + r - 1) / r;
      };
      const int64_t first = rows_before(place), end = rows_before(place + count);
      LN_CHECK(first == cache.rows[h], "head {} has {} rows at place {}", h, cache.rows[h], place);
      rows.slot.push_back(slot + offset + first * r - place);
      rows.first.push_back(first);
      rows.count.push_back(end - first);
      cache.rows[h] = end;
      most = std::max(most, end);
      any = any || end > first;
    }
    if (!any) return;
    if (most > cache.capacity) grow(cache, most, (w + r - 1) / r);
    std::vector<int64_t> chunk_slot;
    for (int64_t h = 0; h < heads_; ++h) chunk_slot.push_back(h * cache.capacity + rows.first[h]);
    SegmentTask task;
    task.segment = {token - place, token + count};
    task.origin = origin(token - place, w);
    const auto chunk = [&](const TensorView& kept) {
      return kept.view({1, heads_ * cache.capacity, head_dim_});
    };
    attention_pack_rows(context_, chunk(cache.keys), chunk(cache.values), key, value, rows,
                        chunk_slot, task, options(branch));
  }

  int64_t bytes() const {
    int64_t total = 0;
    for (const auto& layer : caches_)
      for (const SegmentCache& cache : layer)
        total += cache.keys.defined() ? 2 * cache.keys.bytes() : 0;
    return total;
  }

 private:
  static int64_t origin(int64_t segment_begin, int64_t segment_length) {
    return segment_begin + std::min(segment_length, kXposReach) / 2;
  }

  /// Room for `rows` of every head, or twice what there was; most_rows: of a whole segment.
  void grow(SegmentCache& cache, int64_t rows, int64_t most_rows) {
    const int64_t capacity = std::min(std::max({int64_t{64}, 2 * cache.capacity, rows}), most_rows);
    auto memory = std::make_unique<Arena>("cached keys and values", false, context_.device());
    for (TensorView* kept : {&cache.keys, &cache.values}) {
      const TensorView bigger =
          memory->allocate_zeroed(DType::kF32, {heads_ * capacity, head_dim_});
      for (int64_t h = 0; h < heads_ && cache.capacity > 0; ++h)
        copy(context_, bigger.slice(0, h * capacity, cache.capacity),
             kept->slice(0, h * cache.capacity, cache.capacity));
      *kept = bigger;
    }
    context_.wait();  // before the old memory goes
    cache.memory = std::move(memory);
    cache.capacity = capacity;
  }

  AttentionOptions options(size_t branch) const {
    AttentionOptions options;
    options.dilation = config_.branches[branch].dilation;
    options.head_offset = head_offsets_[branch];
    options.rotary = rotary_.enabled() ? &rotary_ : nullptr;
    options.scale = static_cast<float>(1.0 / std::sqrt(double(head_dim_)));
    options.causal = true;
    return options;
  }

  void attend(int64_t layer, size_t branch, const TensorView& out, const TensorView& lse,
              const TensorView& query) {
    const auto [w, r] = config_.branches[branch];
    SegmentCache& cache = caches_[layer][branch];
    const int64_t place = token_ % w, begin = token_ - place;
    SegmentTask task;
    task.segment = {begin, token_ + 1};
    task.origin = origin(begin, w);
    KeySource source;
    source.positions_applied = true;
    bool any = false;
    for (int64_t h = 0; h < heads_; ++h) {
      const bool kept = place % r == head_offsets_[branch][h];
      any = any || kept;
      task.queries.slot.push_back(0);
      task.queries.first.push_back(place / r);
      task.queries.count.push_back(kept ? 1 : 0);
      source.rows.slot.push_back(h * cache.capacity);
      source.rows.first.push_back(0);
      source.rows.count.push_back(kept ? cache.rows[h] : 0);
    }
    if (!any) return;
    const auto rows_view = [&](const TensorView& rows) {
      // [1, H capacity, H, D] with head stride 0: each head's rows begin at its own slot.
      TensorView view(rows.data, DType::kF32, {1, heads_ * cache.capacity, heads_, head_dim_},
                      rows.device);
      view.stride = {0, head_dim_, 0, 1};
      return view;
    };
    source.key = rows_view(cache.keys);
    source.value = rows_view(cache.values);
    task.keys.push_back(std::move(source));
    const std::span<const SegmentTask> tasks(&task, 1);
    const int64_t bytes =
        attention_workspace_bytes(context_, {1, head_dim_, DType::kF32}, tasks, false);
    if (bytes > workspace_bytes_) {
      workspace_bytes_ = 2 * bytes;
      workspace_arena_.emplace("workspace", false, context_.device());
      workspace_ = workspace_arena_->allocate_bytes(workspace_bytes_);
    }
    attention_forward(context_, {out, lse, query, tasks}, options(branch), workspace_);
  }

  Context& context_;
  ModelConfig config_;
  int64_t heads_, head_dim_;
  RotaryTable rotary_;
  std::vector<std::vector<int64_t>> head_offsets_;  // [K][H]
  std::vector<std::vector<SegmentCache>> caches_;   // [layers][K]
  int64_t layers_ = 0, token_ = 0;
  std::optional<Arena> workspace_arena_;
  void* workspace_ = nullptr;
  int64_t workspace_bytes_ = 0;
};

/// While it lives the context takes any attention, whatever run.attention asks for: generation is
/// float32 and attends one query at a time. A GPU's linear layers get scratch if they have none.
class GenerationContext {
 public:
  GenerationContext(Context& context, void* scratch, int64_t scratch_bytes)
      : context_(context), choice_(context.attention()) {
    context.set_attention(AttentionChoice::kAuto);
    lends_ = scratch_bytes > 0 && context.library_workspace() == nullptr;
    if (lends_) context.set_library_workspace(scratch, scratch_bytes);
  }
  ~GenerationContext() {
    context_.set_attention(choice_);
    if (lends_) context_.set_library_workspace(nullptr, 0);
  }
  GenerationContext(const GenerationContext&) = delete;
  GenerationContext& operator=(const GenerationContext&) = delete;

 private:
  Context& context_;
  AttentionChoice choice_;
  bool lends_ = false;
};

}  // namespace

struct Generator::Impl {
  Impl(Context& context, const ModelConfig& config, const ParameterLayout& layout,
       const TensorView& parameters)
      : context(context),
        config(config),
        layout(layout),
        parameters(parameters),
        attention(context, config),
        activations("activations", false, context.device()),
        workspace("workspace", false, context.device()),
        scratch_bytes(context.library_workspace() == nullptr ? linear_workspace_bytes(context) : 0),
        scratch(scratch_bytes > 0 ? workspace.allocate_bytes(scratch_bytes) : nullptr),
        step_token(activations.allocate(DType::kI64, {1, 1})),
        logits(workspace.allocate(DType::kF32, {1, config.vocab_size})),
        begun(std::in_place, context, scratch, scratch_bytes),
        step_model(context, config, plan_of(1), 1, layout, parameters, {}, no_exchange,
                   {activations, workspace}, {.attention = &attention}) {
    begun.reset();
  }

  SequencePlan plan_of(int64_t tokens) const {
    return SequencePlan(tokens, 1, 0, config.heads, config.branches, config.head_offset_mode());
  }
  std::vector<float> last_logits(LongNet& model) {
    std::vector<float> values(config.vocab_size);
    model.logits(logits, model.rows() - 1);
    copy_to_host(context, values.data(), logits);
    return values;
  }

  Context& context;
  ModelConfig config;
  const ParameterLayout& layout;
  TensorView parameters;
  NoExchange no_exchange;
  CachedAttention attention;
  Arena activations, workspace;
  int64_t scratch_bytes;
  void* scratch;                           // of a GPU's linear layers
  TensorView step_token, logits;           // [1, 1] i64, [1, V]
  std::optional<GenerationContext> begun;  // during construction
  LongNet step_model;
  int64_t tokens = 0;
};

Generator::Generator(Context& context, const ModelConfig& config, const ParameterLayout& layout,
                     const TensorView& parameters) {
  if (!config.causal)
    throw Error(
        "model.causal is false: such a model predicts no next token; generate needs a causal "
        "model");
  impl_ = std::make_unique<Impl>(context, config, layout, parameters);
}
Generator::~Generator() = default;

std::vector<float> Generator::prefill(std::span<const int64_t> prompt) {
  Impl& impl = *impl_;
  if (prompt.empty()) throw Error("the prompt is empty; give at least one token");
  const int64_t count = static_cast<int64_t>(prompt.size());
  check_tokens(prompt, impl.config.vocab_size);
  const GenerationContext scope(impl.context, impl.scratch, impl.scratch_bytes);
  impl.attention.clear();
  Arena activations("activations", false, impl.context.device());
  Arena workspace("workspace", false, impl.context.device());
  LongNet model(impl.context, impl.config, impl.plan_of(count), 1, impl.layout, impl.parameters, {},
                impl.no_exchange, {activations, workspace});
  const TensorView tokens = activations.allocate(DType::kI64, {1, count});
  copy_from_host(impl.context, tokens, prompt.data());
  model.forward(tokens);
  for (int64_t layer = 0; layer < impl.config.layers; ++layer) {
    const QueryKeyValue inputs = model.attended_inputs(layer);  // [1, N, H, D]
    for (size_t branch = 0; branch < impl.config.branches.size(); ++branch) {
      // Only the segment that the next token may still see.
      const int64_t w = impl.config.branches[branch].segment_length;
      const int64_t begin = (count - 1) / w * w;
      impl.attention.append(layer, branch, begin, count - begin, begin, inputs.key, inputs.value);
    }
  }
  impl.tokens = count;
  return impl.last_logits(model);
}

std::vector<float> Generator::step(int64_t token) {
  Impl& impl = *impl_;
  LN_CHECK(impl.tokens > 0, "step before prefill");
  check_tokens({&token, 1}, impl.config.vocab_size);
  const GenerationContext scope(impl.context, impl.scratch, impl.scratch_bytes);
  impl.attention.set_token(impl.tokens++);
  copy_from_host(impl.context, impl.step_token, &token);
  impl.step_model.forward(impl.step_token);
  return impl.last_logits(impl.step_model);
}

int64_t Generator::tokens() const { return impl_->tokens; }
int64_t Generator::cache_bytes() const { return impl_->attention.bytes(); }

int64_t sample_token(std::span<const float> logits, const SamplingOptions& options, uint64_t draw) {
  LN_CHECK(!logits.empty(), "no logits");
  const auto most_likely = std::max_element(logits.begin(), logits.end()) - logits.begin();
  if (options.temperature <= 0) return most_likely;
  // Candidates in falling order of logit, ties by number, so that top_k is well defined.
  std::vector<int64_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto higher = [&](int64_t a, int64_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  if (options.top_k > 0 && options.top_k < static_cast<int64_t>(order.size())) {
    std::partial_sort(order.begin(), order.begin() + options.top_k, order.end(), higher);
    order.resize(options.top_k);
  }
  const double peak = logits[most_likely];
  double total = 0;
  std::vector<double> cumulative;
  for (int64_t token : order) {
    total += std::exp((logits[token] - peak) / options.temperature);
    cumulative.push_back(total);
  }
  const double point = RandomStream(options.seed, "generate").uniform(draw) * total;
  const auto it = std::upper_bound(cumulative.begin(), cumulative.end(), point);
  const auto place = std::min<size_t>(it - cumulative.begin(), order.size() - 1);
  return order[place];
}

}  // namespace longnet
