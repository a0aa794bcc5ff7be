// P ranks give what one rank gives: attention and model, outputs, loss and every gradient, for all
// golden cases and for random ones. Run with 1, 2, 4 and 8 ranks.
#include <gtest/gtest.h>

#include <random>

#include "dist/mesh.h"
#include "model/dilated_attention.h"
#include "support/compare.h"
#include "support/model_case.h"

namespace longnet::test {
namespace {

struct AttentionCase {
  int64_t batch, tokens, heads, head_dim;
  std::vector<Branch> branches;
  bool causal;
  HeadOffset mode = HeadOffset::kInterleaved;
  Position position = Position::kNone;
};

struct AttentionTensors {  // [B, N, H, D] each, lse [B, H, N]
  std::vector<float> q, k, v, grad_o, o, lse, grad_q, grad_k, grad_v;
};

/// Tokens [begin, begin + length) of a [B, N, W] array.
std::vector<float> shard(const std::vector<float>& whole, int64_t batch, int64_t tokens,
                         int64_t width, int64_t begin, int64_t length) {
  std::vector<float> part;
  for (int64_t b = 0; b < batch; ++b)
    part.insert(part.end(), whole.begin() + (b * tokens + begin) * width,
                whole.begin() + (b * tokens + begin + length) * width);
  return part;
}

/// This rank's share of forward and backward; results are local.
AttentionTensors run_attention(const AttentionCase& c, const AttentionTensors& inputs,
                               const SequencePlan& plan, KeyValueExchange& exchange) {
  Context context;
  context.set_progress([&] { exchange.progress(); });
  Arena arena("test");
  RotaryOptions rotary;
  rotary.position = c.position;
  DilatedAttentionOperator attention(
      context, plan, c.batch,
      {.head_dim = c.head_dim, .causal = c.causal, .rotary = rotary, .scale = 0, .training = true},
      exchange, arena);
  auto saved = attention.make_saved(arena);
  const int64_t begin = plan.local_begin(), local = plan.local_tokens();
  const int64_t width = c.heads * c.head_dim;
  AttentionTensors r;
  r.q = shard(inputs.q, c.batch, c.tokens, width, begin, local);
  r.k = shard(inputs.k, c.batch, c.tokens, width, begin, local);
  r.v = shard(inputs.v, c.batch, c.tokens, width, begin, local);
  r.grad_o = shard(inputs.grad_o, c.batch, c.tokens, width, begin, local);
  // Not zero: whatever is not written shows.
  for (auto* values : {&r.o, &r.grad_q, &r.grad_k, &r.grad_v}) values->assign(r.q.size(), 123.0f);
  r.lse.assign(c.batch * c.heads * local, 123.0f);
  // One float more, so that an empty shard still has an address.
  for (auto* values : {&r.q, &r.k, &r.v, &r.grad_o, &r.o, &r.lse, &r.grad_q, &r.grad_k, &r.grad_v})
    values->push_back(0.0f);
  const auto view = [&](std::vector<float>& values) {
    return TensorView(values.data(), DType::kF32, {c.batch, local, c.heads, c.head_dim});
  };
  const TensorView lse(r.lse.data(), DType::kF32, {c.batch, c.heads, local});
  attention.forward(view(r.o), lse, {view(r.q), view(r.k), view(r.v)}, saved);
  attention.backward({view(r.grad_q), view(r.grad_k), view(r.grad_v)}, view(r.grad_o), view(r.o),
                     lse, {view(r.q), view(r.k), view(r.v)}, saved);
  for (auto* values : {&r.q, &r.k, &r.v, &r.grad_o, &r.o, &r.lse, &r.grad_q, &r.grad_k, &r.grad_v})
    values->pop_back();
  return r;
}

double largest_gradient(const AttentionTensors& t) {
  double largest = 0;
  for (const auto* values : {&t.grad_q, &t.grad_k, &t.grad_v})
    for (float g : *values) largest = std::max(largest, std::abs(double(g)));
  return largest;
}

/// Largest error of this rank's part, as a share of what is allowed; over all ranks by the caller.
double worst_error(const AttentionCase& c, const AttentionTensors& local,
                   const AttentionTensors& whole, const SequencePlan& plan) {
  const int64_t begin = plan.local_begin(), count = plan.local_tokens();
  const int64_t width = c.heads * c.head_dim;
  const double largest = largest_gradient(whole);
  double worst = 0;
  const auto compare = [&](const std::vector<float>& mine, const std::vector<float>& all,
                           double g) {
    // The allowance is of the whole tensor, not of the part that this rank holds.
    Difference d = difference(mine, shard(all, c.batch, c.tokens, width, begin, count));
    d.max_expected = difference(all, all).max_expected;
    worst = std::max(worst, error_ratio(d, g));
  };
  compare(local.o, whole.o, 0);
  compare(local.grad_q, whole.grad_q, largest);
  compare(local.grad_k, whole.grad_k, largest);
  compare(local.grad_v, whole.grad_v, largest);
  std::vector<float> lse;
  for (int64_t row = 0; row < c.batch * c.heads; ++row)
    lse.insert(lse.end(), whole.lse.begin() + row * c.tokens + begin,
               whole.lse.begin() + row * c.tokens + begin + count);
  Difference d = difference(local.lse, lse);
  d.max_expected = std::max(1.0, difference(whole.lse, whole.lse).max_expected);
  return std::max(worst, error_ratio(d));
}

double run_case_on_all_ranks(Communicator& world, const AttentionCase& c,
                             const AttentionTensors& inputs, const AttentionTensors& expected) {
  const SequencePlan plan(c.tokens, world.size(), world.rank(), c.heads, c.branches, c.mode);
  SequenceExchange exchange(world, plan, c.batch, c.head_dim);
  const AttentionTensors local = run_attention(c, inputs, plan, exchange);
  double worst = worst_error(c, local, expected, plan);
  world.all_reduce_max({&worst, 1});
  return worst;
}

TEST(AttentionParity, GoldenFiles) {
  const auto world = make_mpi_communicator();
  for (const char* name : {"blocked-heads", "dense-causal", "full", "paper-ratios",
                           "short-last-segment", "two-branches", "uncovered-queries"}) {
    const SafetensorsFile file(golden_path(std::string("attention-") + name));
    const nlohmann::json json = nlohmann::json::parse(file.metadata().at("case"));
    AttentionCase c{json["batch"], json["tokens"], json["heads"], json["head_dim"], {},
                    json["causal"]};
    for (const auto& branch : json["branches"]) c.branches.push_back({branch[0], branch[1]});
    if (json["head_offset"] == "blocked") c.mode = HeadOffset::kBlocked;
    AttentionTensors t{file.floats("q"),      file.floats("k"),      file.floats("v"),
                       file.floats("grad_o"), file.floats("o"),      file.floats("lse"),
                       file.floats("grad_q"), file.floats("grad_k"), file.floats("grad_v")};
    const double worst = run_case_on_all_ranks(*world, c, t, t);
    EXPECT_LE(worst, 1.0) << name;
    if (world->rank() == 0)
      printf("  attention-%s on %d ranks: worst error %.3f of the allowance\n", name, world->size(),
             worst);
  }
}

AttentionTensors random_inputs(const AttentionCase& c, uint64_t seed) {
  const int64_t n = c.batch * c.tokens * c.heads * c.head_dim;
  AttentionTensors t;
  t.q = random_values(n, 4 * seed);
  t.k = random_values(n, 4 * seed + 1);
  t.v = random_values(n, 4 * seed + 2);
  t.grad_o = random_values(n, 4 * seed + 3);
  return t;
}

TEST(AttentionParity, RandomCases) {
  const auto world = make_mpi_communicator();
  const bool long_run = std::getenv("LN_TEST_LONG") != nullptr;
  const int cases = (long_run ? 2000 : 60) / (world->size() > 2 ? 2 : 1);
  double worst_of_all = 0;
  for (int i = 0; i < cases; ++i) {
    std::mt19937_64 random(1000 + i);  // the same on every rank
    const auto pick = [&](int64_t low, int64_t high) {
      return low + static_cast<int64_t>(random() % (high - low + 1));
    };
    AttentionCase c;
    c.batch = pick(1, 2);
    c.tokens = pick(1, 5) == 1 ? pick(1, 12) : pick(13, 300);
    c.heads = pick(1, 6);
    c.head_dim = 8 * pick(1, 4);
    for (int64_t k = pick(1, 4); k > 0; --k)
      c.branches.push_back({pick(1, c.tokens + 40), pick(1, pick(1, 2) == 1 ? 4 : 40)});
    c.causal = pick(0, 2) > 0;
    c.mode = pick(0, 1) ? HeadOffset::kInterleaved : HeadOffset::kBlocked;
    c.position = c.causal
                     ? std::array{Position::kNone, Position::kRope, Position::kXpos}[pick(0, 2)]
                     : std::array{Position::kNone, Position::kRope}[pick(0, 1)];
    const AttentionTensors inputs = random_inputs(c, i);
    NoExchange none;
    AttentionTensors one =
        run_attention(c, inputs, SequencePlan(c.tokens, 1, 0, c.heads, c.branches, c.mode), none);
    const double worst = run_case_on_all_ranks(*world, c, inputs, one);
    std::string branches;
    for (const Branch& b : c.branches)
      branches += fmt::format(" {}:{}", b.segment_length, b.dilation);
    EXPECT_LE(worst, 1.0) << "case " << i << ": B " << c.batch << " N " << c.tokens << " H "
                          << c.heads << " D " << c.head_dim << " branches" << branches;
    worst_of_all = std::max(worst_of_all, worst);
  }
  if (world->rank() == 0)
    printf("  %d random cases on %d ranks: worst error %.3f of the allowance\n", cases,
           world->size(), worst_of_all);
}

/// Runs a model case on all ranks; returns the worst error share of loss, logits and gradients.
double model_error(Communicator& world, const ModelConfig& config, int64_t batch, int64_t n,
                   const std::vector<float>& parameters, const std::vector<int64_t>& table,
                   const std::vector<float>& expected_logits, double expected_loss,
                   const std::vector<float>& expected_gradients) {
  const SequencePlan plan(n, world.size(), world.rank(), config.heads, config.branches,
                          config.head_offset_mode());
  SequenceExchange exchange(world, plan, batch, config.head_dim());
  ModelOnRank rank(config, plan, batch, exchange, parameters);
  std::vector<int64_t> tokens, targets;
  split_tokens(table, batch, plan.local_begin(), plan.local_tokens(), tokens, targets);
  tokens.push_back(0);  // an empty shard still has an address
  targets.push_back(0);
  const CrossEntropyResult result = rank.run(tokens, targets, 1.0 / (batch * n));
  std::array<double, 2> loss{result.loss_sum, double(result.count)};
  world.all_reduce_sum(loss);
  GradientSum sum(world, flat_view(rank.gradients), 64 << 10);
  sum.ready(0, rank.layout.elements());
  sum.wait();

  double worst = std::abs(loss[0] / loss[1] - expected_loss) / (1e-5 * std::abs(expected_loss));
  Difference d = difference(rank.logits, shard(expected_logits, batch, n, config.vocab_size,
                                               plan.local_begin(), plan.local_tokens()));
  d.max_expected = difference(expected_logits, expected_logits).max_expected;
  worst = std::max(worst, error_ratio(d));
  double largest = 0;
  for (float g : expected_gradients) largest = std::max(largest, std::abs(double(g)));
  for (const ParameterInfo& info : rank.layout.parameters())
    worst = std::max(worst,
                     error_ratio(difference(rank.gradients.data() + info.offset,
                                            expected_gradients.data() + info.offset, info.elements),
                                 largest));
  world.all_reduce_max({&worst, 1});
  return worst;
}

TEST(ModelParity, GoldenFiles) {
  const auto world = make_mpi_communicator();
  for (const char* name : {"model-magneto-xpos", "model-preln-rope-tied",
                           "model-parallel-swiglu-qknorm", "model-encoder"}) {
    const SafetensorsFile file(golden_path(name));
    const ModelConfig config = model_config(nlohmann::json::parse(file.metadata().at("case")));
    const ParameterLayout layout(config);
    std::vector<float> gradients(layout.elements(), 0.0f);
    for (const ParameterInfo& info : layout.parameters()) {
      const std::vector<float> g = file.floats("grad." + info.name);
      std::copy(g.begin(), g.end(), gradients.begin() + info.offset);
    }
    const std::vector<int64_t>& shape = file.entry("tokens").shape;
    const double worst = model_error(*world, config, shape[0], shape[1] - 1,
                                     golden_parameters(file, layout), file.integers("tokens"),
                                     file.floats("logits"), file.floats("loss")[0], gradients);
    EXPECT_LE(worst, 1.0) << name;
    if (world->rank() == 0)
      printf("  %s on %d ranks: worst error %.3f of the allowance\n", name, world->size(), worst);
  }
}

/// How far one rank is from itself, as a share of what is allowed, when each parameter moves to a
/// neighbouring float: what rounding alone does to this case. A row whose norm divides by a tiny
/// deviation magnifies it beyond the allowance; no order of summation is right or wrong there.
double rounding_error(const ModelConfig& config, const SequencePlan& plan, int64_t batch,
                      std::vector<float> parameters, std::vector<int64_t>& tokens,
                      std::vector<int64_t>& targets, const std::vector<float>& logits,
                      const std::vector<float>& gradients, double grad_scale) {
  std::mt19937_64 random(1);
  for (float& p : parameters) p = std::nextafter(p, random() % 2 ? INFINITY : -INFINITY);
  NoExchange none;
  ModelOnRank near(config, plan, batch, none, parameters);
  near.run(tokens, targets, grad_scale);
  double worst = error_ratio(difference(near.logits, logits));
  double largest = 0;
  for (float g : gradients) largest = std::max(largest, std::abs(double(g)));
  for (const ParameterInfo& info : near.layout.parameters())
    worst = std::max(worst, error_ratio(difference(near.gradients.data() + info.offset,
                                                   gradients.data() + info.offset, info.elements),
                                        largest));
  return worst;
}

TEST(ModelParity, RandomCases) {
  const auto world = make_mpi_communicator();
  const int cases = std::getenv("LN_TEST_LONG") != nullptr ? 200 : 8;
  double worst_of_all = 0;
  int ill_conditioned = 0;
  for (int i = 0; i < cases; ++i) {
    std::mt19937_64 random(7000 + i);
    const auto pick = [&](int64_t low, int64_t high) {
      return low + static_cast<int64_t>(random() % (high - low + 1));
    };
    ModelConfig config;
    config.vocab_size = pick(5, 60);
    config.heads = pick(1, 5);
    config.dim = config.heads * 8 * pick(1, 3);
    config.layers = pick(1, 3);
    config.ffn_dim = pick(3, 70);
    const int64_t n = pick(world->size(), 150), batch = pick(1, 2);
    config.branches.clear();
    for (int64_t k = pick(1, 3); k > 0; --k)
      config.branches.push_back({pick(2, n + 20), pick(1, 9)});
    config.causal = pick(0, 2) > 0;
    config.head_offset = pick(0, 1) ? "interleaved" : "blocked";
    config.position = config.causal ? std::array{"xpos", "rope", "none"}[pick(0, 2)] : "rope";
    config.norm = pick(0, 1) ? "sub_ln" : "pre_ln";
    config.block = pick(0, 1) ? "sequential" : "parallel";
    config.activation = pick(0, 1) ? "gelu" : "swiglu";
    config.qk_norm = pick(0, 1) != 0;
    config.bias = pick(0, 1) != 0;
    config.tie_embeddings = pick(0, 1) != 0;
    const ParameterLayout layout(config);
    Context context;
    std::vector<float> parameters(layout.elements());
    initialise_parameters(context, layout, flat_view(parameters), i);
    std::vector<int64_t> table(batch * (n + 1));
    for (int64_t& t : table) t = pick(0, config.vocab_size - 1);

    const SequencePlan whole(n, 1, 0, config.heads, config.branches, config.head_offset_mode());
    NoExchange none;
    ModelOnRank one(config, whole, batch, none, parameters);
    std::vector<int64_t> tokens, targets;
    split_tokens(table, batch, 0, n, tokens, targets);
    const CrossEntropyResult result = one.run(tokens, targets, 1.0 / (batch * n));
    const double worst = model_error(*world, config, batch, n, parameters, table, one.logits,
                                     result.loss_sum / result.count, one.gradients);
    if (worst > 1.0) {
      const double rounding = rounding_error(config, whole, batch, parameters, tokens, targets,
                                             one.logits, one.gradients, 1.0 / (batch * n));
      EXPECT_LE(worst, rounding) << "case " << i;
      ++ill_conditioned;
      if (world->rank() == 0)
        printf(
            "  case %d on %d ranks: %.3f of the allowance; one rank with each parameter one "
            "float away: %.3f\n",
            i, world->size(), worst, rounding);
      continue;
    }
    worst_of_all = std::max(worst_of_all, worst);
  }
  EXPECT_LE(ill_conditioned, cases / 100) << "too many cases that rounding alone explains";
  if (world->rank() == 0)
    printf("  %d random models on %d ranks: worst error %.3f of the allowance\n", cases,
           world->size(), worst_of_all);
}

TEST(ModuleParity, DilatedAttentionSplitOverRanks) {
  const auto world = make_mpi_communicator();
  const DilatedAttentionConfig config{
      .dim = 32, .heads = 4, .branches = {{16, 1}, {70, 3}}, .position = "rope", .qk_norm = true};
  const int64_t batch = 2, n = 70;
  const std::vector<float> x = random_values(batch * n * config.dim, 1);
  const std::vector<float> grad_y = random_values(batch * n * config.dim, 2);
  DilatedAttention whole(config), split(config);
  const std::vector<float> y = whole.forward(x, batch, n), grad_x = whole.backward(grad_y);

  const SequencePlan plan(n, world->size(), world->rank(), config.heads, config.branches,
                          HeadOffset::kInterleaved);
  SequenceExchange exchange(*world, plan, batch, config.dim / config.heads);
  split.set_sequence(plan, exchange);
  const auto mine = [&](const std::vector<float>& values) {
    return shard(values, batch, n, config.dim, plan.local_begin(), plan.local_tokens());
  };
  const std::vector<float> local_y = split.forward(mine(x), batch, plan.local_tokens());
  const std::vector<float> local_grad_x = split.backward(mine(grad_y));
  double worst = std::max(error_ratio(difference(local_y, mine(y)), 10),
                          error_ratio(difference(local_grad_x, mine(grad_x)), 10));
  world->all_reduce_max({&worst, 1});
  EXPECT_LE(worst, 1.0);
}

}  // namespace
}  // namespace longnet::test
