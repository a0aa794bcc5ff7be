// longnet attend IN OUT --branch W:R ...: the dilated-attention operator on tensors of a file, for
// comparison with other frameworks. Runs under mpirun too: ranks split the sequence, each reads its
// own tokens from the file, and rank 0 writes. It has no projections and no model; positions enter
// only by differences, so there is no offset to set.
#include <sys/resource.h>

#include <algorithm>
#include <bit>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>

#include "cli/arguments.h"
#include "cli/commands.h"
#include "core/arena.h"
#include "core/host_copy.h"
#include "core/log.h"
#include "core/no_exchange.h"
#include "core/output_file.h"
#include "core/safetensors.h"
#include "dist/mesh.h"
#include "model/dilated_attention_operator.h"
#include "train/agreement.h"
#include "train/backend.h"
#include "train/rank_context.h"

namespace longnet {
namespace {

struct Arguments {
  std::string in, out;
  std::vector<std::string> branches;
  bool causal = false;
  std::string head_offset = "interleaved", position = "none", backend = "cpu";
  double rope_base = 10000, xpos_scale_base = 512, scale = 0;
};

/// The checked content of the input file: shapes, and which tensors it has.
struct Problem {
  int64_t batch = 0, tokens = 0, heads = 0, head_dim = 0;
  std::vector<Branch> branches;
  bool backward = false, first_visible = false, last_visible = false;
};

Problem check_problem(const SafetensorsFile& file, const Arguments& arguments) {
  Problem problem;
  for (const std::string& text : arguments.branches) problem.branches.push_back(parse_branch(text));
  const std::vector<int64_t>& shape = file.entry("q").shape;
  if (shape.size() != 4)
    throw Error("{}: q has {} axes; allowed: [B, N, H, D]", file.path(), shape.size());
  problem.batch = shape[0];
  problem.tokens = shape[1];
  problem.heads = shape[2];
  problem.head_dim = shape[3];
  for (int64_t extent : shape)
    if (extent < 1) throw Error("{}: q is empty", file.path());
  if (problem.head_dim < 8 || problem.head_dim > 256)
    throw Error("{}: head dimension {}; allowed: 8 to 256", file.path(), problem.head_dim);
  problem.backward = file.contains("grad_o");
  for (const char* name : {"q", "k", "v", "grad_o"}) {
    if (std::string(name) == "grad_o" && !problem.backward) continue;
    const std::string& dtype = file.entry(name).dtype;
    if (dtype != "F32" && dtype != "F64" && dtype != "BF16")
      throw Error("{}: {} is {}; allowed: F32, F64, BF16", file.path(), name, dtype);
    if (file.entry(name).shape != shape)
      throw Error("{}: {} has shape [{}], q has [{}]; they must be equal", file.path(), name,
                  fmt::join(file.entry(name).shape, ", "), fmt::join(shape, ", "));
  }
  const auto limits = [&](const char* name) {
    if (!file.contains(name)) return false;
    if (file.entry(name).shape != std::vector<int64_t>{problem.batch, problem.tokens} ||
        file.entry(name).dtype != "I64")
      throw Error("{}: {} must be I64 [B, N]", file.path(), name);
    return true;
  };
  problem.first_visible = limits("first_visible");
  problem.last_visible = limits("last_visible");
  if (arguments.position != "none" && problem.head_dim % 2 != 0)
    throw Error("--position {} needs an even head dimension, not {}", arguments.position,
                problem.head_dim);
  if (arguments.position == "xpos") {
    if (!arguments.causal) throw Error("--position xpos needs --causal; use --position rope");
    for (const Branch& branch : problem.branches)
      if (std::min(branch.segment_length, problem.tokens) > 49152)
        throw Error(
            "--position xpos with segment length {}: allowed up to 49152; use --position rope",
            branch.segment_length);
  }
  return problem;
}

/// Throws Error if OUT cannot be written; leaves the file system as it was.
void check_writable(const std::string& in, const std::string& out) {
  std::error_code ignored;
  if (std::filesystem::exists(out, ignored) && std::filesystem::equivalent(in, out, ignored))
    throw Error("{}: OUT is the same file as IN; give another name", out);
  check_output_path(out);
}

/// Bytes that Linux could still give to this process: free memory, ulimit -v; 0: unknown.
int64_t free_memory() {
  int64_t bytes = 0;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    int64_t kib = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %" SCNd64, &kib) == 1) bytes = kib << 10;
  }
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
    bytes = std::min(bytes, static_cast<int64_t>(limit.rlim_cur));
  return bytes;
}

/// Throws Error if the host memory that attend certainly takes on the largest rank is not there:
/// the tensors of its shard on a CPU, and on every rank one whole result when they are put
/// together.
void check_memory(const Problem& p, int ranks, const Arguments& arguments) {
  const double row = static_cast<double>(p.batch * p.heads) * static_cast<double>(p.head_dim) *
                     static_cast<double>(sizeof(float));
  const double whole = row * static_cast<double>(p.tokens), shard = whole / ranks;
  const double tensors = arguments.backend == "cpu" ? (p.backward ? 8 : 4) : 0;
  const double needed = shard * (tensors + 1) + whole * (p.backward ? 5 : 2);
  const int64_t available = free_memory();
  constexpr double kGiB = 1 << 30;
  if (available > 0 && needed > static_cast<double>(available))
    throw Error(
        "{}: [{}, {}, {}, {}] takes at least {:.1f} GiB of memory on rank 0 of {}, {:.1f} GiB are "
        "free; give fewer tokens, batches or heads at a time",
        arguments.in, p.batch, p.tokens, p.heads, p.head_dim, needed / kGiB, ranks,
        static_cast<double>(available) / kGiB);
}

template <typename From, typename To, typename Convert>
void append(std::vector<To>& out, const SafetensorsFile& file, const std::string& name,
            int64_t first, int64_t count, Convert one) {
  constexpr int64_t kSize = sizeof(From), kPiece = (16 << 20) / kSize;
  std::vector<From> piece(std::min(count, kPiece));
  for (int64_t done = 0; done < count; done += kPiece) {
    const int64_t part = std::min(count - done, kPiece);
    file.read(name, (first + done) * kSize, piece.data(), part * kSize);
    for (int64_t i = 0; i < part; ++i) out.push_back(one(piece[i]));
  }
}

/// This rank's tokens of a [B, N, width] tensor; only they are read from the file.
/// One element more than [B, L, width], so that an empty shard has an address.
std::vector<float> read_shard(const SafetensorsFile& file, const std::string& name,
                              const Problem& p, const SequencePlan& plan, int64_t width) {
  const std::string& dtype = file.entry(name).dtype;
  const int64_t count = plan.local_tokens() * width;
  std::vector<float> values;
  values.reserve(p.batch * count + 1);
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t first = (b * p.tokens + plan.local_begin()) * width;
    if (dtype == "F64")
      append<double>(values, file, name, first, count,
                     [](double v) { return static_cast<float>(v); });
    else if (dtype == "F32")
      append<float>(values, file, name, first, count, [](float v) { return v; });
    else
      append<uint16_t>(values, file, name, first, count, [](uint16_t v) {
        return std::bit_cast<float>(static_cast<uint32_t>(v) << 16);
      });
  }
  values.push_back(0);
  return values;
}

/// This rank's values of an I64 [B, N] tensor.
std::vector<int64_t> read_limits(const SafetensorsFile& file, const std::string& name,
                                 const Problem& p, const SequencePlan& plan) {
  std::vector<int64_t> values;
  for (int64_t b = 0; b < p.batch; ++b)
    append<int64_t>(values, file, name, b * p.tokens + plan.local_begin(), plan.local_tokens(),
                    [](int64_t v) { return v; });
  values.push_back(0);
  return values;
}

/// Every rank's [outer, local, width] part of a tensor, on rank 0 as [outer, N, width], empty on
/// the others. Collective.
std::vector<float> assemble(Communicator& world, const SequencePlan& plan,
                            const std::vector<float>& mine, int64_t outer, int64_t width) {
  std::vector<int64_t> begin_bytes{0};
  for (int rank = 0; rank < plan.ranks(); ++rank)
    begin_bytes.push_back(begin_bytes.back() + (plan.end_of(rank) - plan.begin_of(rank)) * outer *
                                                   width * static_cast<int64_t>(sizeof(float)));
  std::vector<float> gathered(begin_bytes.back() / sizeof(float) + 1);
  std::copy_n(mine.begin(), outer * plan.local_tokens() * width,
              gathered.begin() + begin_bytes[plan.rank()] / sizeof(float));
  world.wait(world.start_all_gather(gathered.data(), begin_bytes));
  if (world.rank() != 0) return {};
  std::vector<float> whole(outer * plan.tokens() * width);
  for (int rank = 0; rank < plan.ranks(); ++rank) {
    const int64_t count = plan.end_of(rank) - plan.begin_of(rank);
    for (int64_t o = 0; o < outer; ++o)
      std::copy_n(gathered.begin() + begin_bytes[rank] / sizeof(float) + o * count * width,
                  count * width, whole.begin() + (o * plan.tokens() + plan.begin_of(rank)) * width);
  }
  return whole;
}

/// One line if values are nan or infinite. -inf is the lse of a query that sees no key.
void warn_if_not_finite(const char* name, const std::vector<float>& values) {
  const bool lse = std::string_view(name) == "lse";
  const int64_t bad = std::count_if(values.begin(), values.end(), [&](float v) {
    return !std::isfinite(v) && !(lse && v == -INFINITY);
  });
  if (bad > 0)
    log_warn("{} of {} values of {} are nan or infinite; see q, k and v{}", bad, values.size(),
             name, std::string_view(name).substr(0, 4) == "grad" ? " and grad_o" : "");
}

int attend(const Arguments& arguments) {
  const auto world = world_communicator();
  std::optional<SafetensorsFile> file;
  Problem p;
  run_on_all(*world, [&] {
    file.emplace(arguments.in);
    p = check_problem(*file, arguments);
    if (world->rank() != 0) return;
    check_memory(p, world->size(), arguments);
    check_writable(arguments.in, arguments.out);
  });
  std::vector<std::string> lines{
      fmt::format("q [{}, {}, {}, {}]{}{}{}", p.batch, p.tokens, p.heads, p.head_dim,
                  p.backward ? " with grad_o" : "", p.first_visible ? " with first_visible" : "",
                  p.last_visible ? " with last_visible" : ""),
      fmt::format("--head-offset {} --position {} --backend {}{}", arguments.head_offset,
                  arguments.position, arguments.backend, arguments.causal ? " --causal" : ""),
      fmt::format("--rope-base {} --xpos-scale-base {} --scale {}", arguments.rope_base,
                  arguments.xpos_scale_base, arguments.scale)};
  for (const Branch& branch : p.branches)
    lines.push_back(fmt::format("--branch {}:{}", branch.segment_length, branch.dilation));
  check_same_on_all(*world, "attend", lines);
  const SequencePlan plan(
      p.tokens, world->size(), world->rank(), p.heads, p.branches,
      arguments.head_offset == "blocked" ? HeadOffset::kBlocked : HeadOffset::kInterleaved);
  Context context = make_context(*world, arguments.backend, 0);
  warn_if_crowded(*world, context);
  // Gathered rows travel where they lie; what is assembled at the end, between the hosts.
  const auto transport = transport_of(context, world_communicator(), {});
  SequenceExchange exchange(*transport, plan, p.batch, p.head_dim);
  context.set_progress([&] { exchange.progress(); });
  Arena arena("attend", false, context.device());
  DilatedAttentionSettings settings;
  settings.head_dim = p.head_dim;
  settings.causal = arguments.causal;
  settings.rotary.position = arguments.position == "rope"   ? Position::kRope
                             : arguments.position == "xpos" ? Position::kXpos
                                                            : Position::kNone;
  settings.rotary.base = arguments.rope_base;
  settings.rotary.xpos_scale_base = arguments.xpos_scale_base;
  settings.scale = arguments.scale;
  settings.training = p.backward;
  DilatedAttentionOperator attention(context, plan, p.batch, settings, exchange, arena);
  auto saved = attention.make_saved(arena);

  const int64_t local = plan.local_tokens(), width = p.heads * p.head_dim;
  const auto read = [&](const char* name) { return read_shard(*file, name, p, plan, width); };
  const auto tensor = [&] {
    return arena.allocate(DType::kF32, {p.batch, local, p.heads, p.head_dim});
  };
  const auto load = [&](const char* name) {
    const TensorView view = tensor();
    copy_from_host(context, view, read(name).data());
    return view;
  };
  const auto limits = [&](const char* name) {
    const TensorView view = arena.allocate(DType::kI64, {p.batch, local});
    copy_from_host(context, view, read_limits(*file, name, p, plan).data());
    return view;
  };
  Visibility visibility;
  if (p.first_visible) visibility.first_visible = limits("first_visible");
  if (p.last_visible) visibility.last_visible = limits("last_visible");
  const TensorView out = tensor(), out_lse = arena.allocate(DType::kF32, {p.batch, p.heads, local});
  const QueryKeyValue inputs{load("q"), load("k"), load("v")};
  attention.forward(out, out_lse, inputs, saved, visibility);
  QueryKeyValue gradients;
  if (p.backward) {
    gradients = {tensor(), tensor(), tensor()};
    attention.backward(gradients, load("grad_o"), out, out_lse, inputs, saved, visibility);
  }
  const auto host = [&](const TensorView& view) {
    std::vector<float> values(view.elements() + 1);
    copy_to_host(context, values.data(), view);
    return values;
  };

  struct Result {
    const char* name;
    std::vector<int64_t> shape;
    std::vector<float> values;
  };
  std::vector<Result> results;
  const std::vector<int64_t> shape{p.batch, p.tokens, p.heads, p.head_dim};
  results.push_back({"o", shape, assemble(*world, plan, host(out), p.batch, width)});
  results.push_back({"lse",
                     {p.batch, p.heads, p.tokens},
                     assemble(*world, plan, host(out_lse), p.batch * p.heads, 1)});
  if (p.backward) {
    results.push_back(
        {"grad_q", shape, assemble(*world, plan, host(gradients.query), p.batch, width)});
    results.push_back(
        {"grad_k", shape, assemble(*world, plan, host(gradients.key), p.batch, width)});
    results.push_back(
        {"grad_v", shape, assemble(*world, plan, host(gradients.value), p.batch, width)});
  }
  run_on_root(*world, [&] {
    std::vector<SafetensorsTensor> tensors;
    for (const Result& r : results) warn_if_not_finite(r.name, r.values);
    for (const Result& r : results)
      tensors.push_back({r.name, DType::kF32, r.shape, r.values.data()});
    write_safetensors(arguments.out, tensors, {{"made_by", command_line()}});
  });
  return 0;
}

}  // namespace

void register_attend(Command& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  Command command = app.add_subcommand(
      "attend", "Run dilated attention on q, k, v [B, N, H, D] of a .safetensors file");
  command.add_option("IN", arguments->in, "q, k, v, optional grad_o, first_visible, last_visible")
      .required()
      .transform(typed_path());
  command.add_option("OUT", arguments->out, "o, lse [B, H, N]; with grad_o: grad_q, grad_k, grad_v")
      .required()
      .transform(typed_path());
  command.add_option("--branch", arguments->branches, "W:R segment length and dilation, repeatable")
      .required()
      .repeatable();
  command.add_flag("--causal", arguments->causal, "A query sees keys at or before it");
  command.add_option("--head-offset", arguments->head_offset, "Which token a head starts at")
      .check(one_of({"interleaved", "blocked"}))
      .capture_default_str();
  command.add_option("--position", arguments->position, "Rotary positions")
      .check(one_of({"none", "rope", "xpos"}))
      .capture_default_str();
  command.add_option("--rope-base", arguments->rope_base)
      .check(number_range(1, 1e12))
      .capture_default_str();
  command.add_option("--xpos-scale-base", arguments->xpos_scale_base, "Tokens")
      .check(number_range(1, 1e12))
      .capture_default_str();
  command.add_option("--backend", arguments->backend, "Where to compute, as run.backend")
      .check(one_of({"cpu", "cuda"}))
      .capture_default_str();
  command.add_option("--scale", arguments->scale, "Of q k^T; 0: D^-1/2")
      .check(number_range(0, 1e6))
      .capture_default_str();
  command.callback([arguments, &action] { action = [arguments] { return attend(*arguments); }; });
}

}  // namespace longnet
