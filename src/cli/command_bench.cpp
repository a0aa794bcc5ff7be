// longnet bench attention|step|collectives: measurements as JSON, each beside a limit measured in
// the same run.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "cli/arguments.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "core/device_runtime.h"
#include "core/text.h"
#include "dist/bench_collectives.h"
#include "dist/mesh.h"
#include "kernels/attention/attention_bench.h"
#include "kernels/machine/machine.h"
#include "kernels/random/random.h"
#include "train/agreement.h"
#include "train/backend.h"
#include "train/learner.h"
#include "train/rank_context.h"

#ifndef LN_COMMIT
#define LN_COMMIT "unknown"
#endif

namespace longnet {
namespace {

using Json = nlohmann::ordered_json;

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown";
}

/// First fields of every report.
Json header(const std::string& name, int ranks) {
  return {{"benchmark", name},
          {"command", command_line()},
          {"commit", LN_COMMIT},
          {"processor", processor()},
          {"cores", std::thread::hardware_concurrency()},
          {"ranks", ranks}};
}

// ------------------------------------------------------------------------------ attention

struct AttentionArguments {
  AttentionBenchOptions options;
  std::vector<std::string> branches, cases;
  bool full = false;
  int threads = 0;
  std::string backend = "cpu", attention = "auto", dtype, position = "none";  // dtype: by backend

  bool gpu() const { return backend == "cuda"; }
};

const std::vector<std::string> kAttentions{"auto", "cudnn", "native", "plain"};
const std::vector<std::string> kPositions{"none", "rope", "xpos"};

/// What one run measures; a word each for how the command line calls it.
struct AttentionCase {
  std::vector<Branch> branches;
  std::string attention, position;
};

/// "2048:1,cudnn,none"
AttentionCase parse_case(const std::string& text) {
  std::vector<std::string> words;
  std::istringstream stream(text);
  for (std::string word; std::getline(stream, word, ',');) words.push_back(word);
  const auto among = [](const std::string& word, const std::vector<std::string>& allowed) {
    return std::find(allowed.begin(), allowed.end(), word) != allowed.end();
  };
  if (words.size() != 3 || text.back() == ',' || !among(words[1], kAttentions) ||
      !among(words[2], kPositions))
    throw Error("--case {}: allowed: W:R,ATTENTION,POSITION such as 2048:1,cudnn,none",
                in_quotes(text));
  return {{parse_branch(words[0])}, words[1], words[2]};
}

/// The options of a case; throws Error if they do not go together.
AttentionBenchOptions case_options(const AttentionArguments& arguments, const AttentionCase& c) {
  AttentionBenchOptions o = arguments.options;
  if (!c.branches.empty()) o.branches = c.branches;
  o.causal = !arguments.full;
  if (!arguments.gpu() && c.attention != "auto")
    throw Error("--attention {} selects GPU kernels; add --backend cuda", c.attention);
  o.position = c.position == "xpos"   ? Position::kXpos
               : c.position == "rope" ? Position::kRope
                                      : Position::kNone;
  if (o.position != Position::kNone && o.head_dim % 2 != 0)
    throw Error("--position {} needs an even --head-dim, not {}", c.position, o.head_dim);
  if (o.position == Position::kXpos && !o.causal)
    throw Error("--position xpos needs the causal mask; remove --full or use --position rope");
  o.dtype = arguments.dtype.empty() ? (arguments.gpu() ? DType::kBF16 : DType::kF32)
                                    : float_type(arguments.dtype);
  return o;
}

Json timing(const AttentionBenchTiming& t, bool gpu) {
  Json json = {{"executed_gflops", t.executed_gflops}};
  if (gpu) {
    json["share_of_matmul"] = t.share_of_matmul;
    if (t.sdpa_seconds > 0) {
      json["sdpa_median_seconds"] = t.sdpa_seconds;
      json["share_of_sdpa"] = t.share_of_sdpa;
    }
    if (t.unmerged_seconds > 0) json["unmerged_median_seconds"] = t.unmerged_seconds;
    json["host_seconds"] = t.host_seconds;
    if (t.sdpa_seconds > 0) json["sdpa_host_seconds"] = t.sdpa_host_seconds;
    if (t.unmerged_seconds > 0) json["unmerged_host_seconds"] = t.unmerged_host_seconds;
  } else {
    json["share_of_fma"] = t.share_of_fma;
  }
  json["median_seconds"] = t.median_seconds;
  json["fastest_seconds"] = t.fastest_seconds;
  json["slowest_seconds"] = t.slowest_seconds;
  json["executed_flops"] = t.executed_flops;
  json["largest_error"] = t.largest_error;
  return json;
}

/// Fields of a case's report, whether or not it could be measured.
Json case_header(const AttentionArguments& arguments, const AttentionCase& c, Context& context,
                 const AttentionBenchOptions& o) {
  Json json = header("attention", 1);
  json["backend"] = arguments.backend;
  json["dtype"] = dtype_name(o.dtype);
  json["position"] = c.position;
  if (arguments.gpu()) json["attention"] = c.attention;
  json["threads"] = context.threads();
  json["isa"] = isa_name(context.isa());
  json["shape"] = {{"batch", o.batch},
                   {"tokens", o.tokens},
                   {"heads", o.heads},
                   {"head_dim", o.head_dim},
                   {"causal", o.causal}};
  for (const Branch& b : o.branches)
    json["shape"]["branches"].push_back({b.segment_length, b.dilation});
  return json;
}

void add_figures(Json& json, const AttentionBenchResult& result, bool gpu) {
  if (gpu)
    json["matmul_gflops"] = result.matmul_gflops;
  else
    json["fma_gflops"] = result.fma_gflops;
  json["begin_seconds"] = result.begin_seconds;
  json["calls_per_sample"] = result.calls_per_sample;
  json["forward"] = timing(result.forward, gpu);
  json["backward"] = timing(result.backward, gpu);
}

/// One line per case as soon as it is measured, or with why it was not.
int bench_attention_cases(const AttentionArguments& arguments,
                          const std::vector<AttentionCase>& cases, Context& context) {
  std::vector<AttentionBenchOptions> options;
  for (const AttentionCase& c : cases) options.push_back(case_options(arguments, c));
  const double limit = attention_bench_limit(context, options[0].dtype);
  const AttentionBenchInputs inputs(context, options[0]);
  int failed = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    options[i].limit_gflops = limit;
    Json json = case_header(arguments, cases[i], context, options[i]);
    context.set_attention(attention_choice(cases[i].attention));
    try {
      add_figures(json, bench_attention(context, options[i], inputs), arguments.gpu());
    } catch (const Error& error) {
      json["error"] = error.what();
      ++failed;
    }
    write_json(json, -1);
    flush_output();
  }
  if (failed > 0) throw Error("{} of {} cases were not measured", failed, cases.size());
  return 0;
}

int bench_attention_command(const AttentionArguments& arguments) {
  const auto world = world_communicator();
  require_one_rank(*world, "bench attention");
  std::vector<AttentionCase> cases;
  for (const std::string& text : arguments.cases) cases.push_back(parse_case(text));
  AttentionCase single{{}, arguments.attention, arguments.position};
  for (const std::string& text : arguments.branches) single.branches.push_back(parse_branch(text));
  for (const AttentionCase& c : cases) case_options(arguments, c);
  const AttentionBenchOptions options = case_options(arguments, single);
  Context context = make_context(*world, arguments.backend, arguments.threads);
  warn_if_crowded(*world, context);
  if (!cases.empty()) return bench_attention_cases(arguments, cases, context);
  context.set_attention(attention_choice(arguments.attention));
  Json json = case_header(arguments, single, context, options);
  add_figures(json, bench_attention(context, options), arguments.gpu());
  write_json(json);
  return 0;
}

// ------------------------------------------------------------------------------ step

struct StepArguments {
  std::string config;
  std::vector<std::string> overrides;
  int steps = 10;
};

int bench_step(const StepArguments& arguments) {
  auto world = world_communicator();
  const Config config = load_config_on_all(*world, arguments.config, arguments.overrides);
  Context context =
      make_context(*world, config.run.backend, static_cast<int>(config.parallel.threads));
  warn_if_crowded(*world, context);
  Mesh mesh =
      make_mesh_on_all(transport_of(context, std::move(world), config.parallel), config.parallel);
  Learner learner(context, config, mesh);
  learner.initialise();
  const auto peak_of_all = [&] {
    mesh.world->barrier();
    std::array<double, 1> gflops{
        measure_machine(context, 0.3, float_type(config.run.dtype)).matmul_gflops};
    mesh.world->all_reduce_sum(gflops);
    return gflops[0];
  };
  double peak = peak_of_all();
  const RandomStream random(1, "bench");
  std::vector<MicroBatch> batches(config.train.accumulation);
  for (MicroBatch& batch : batches)
    for (int64_t i = 0; i < learner.local_rows(); ++i) {
      batch.tokens.push_back(random.bits(2 * i) % config.model.vocab_size);
      batch.targets.push_back(random.bits(2 * i + 1) % config.model.vocab_size);
    }
  learner.train_step(batches, 1);  // warm-up
  context.seconds().clear();
  const Work before = context.work();
  std::vector<double> seconds;
  StepResult result;
  for (int step = 0; step < arguments.steps; ++step) {
    mesh.world->barrier();
    const auto start = std::chrono::steady_clock::now();
    result = learner.train_step(batches, step + 2);
    std::array<double, 1> slowest{
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()};
    mesh.world->all_reduce_max(slowest);
    seconds.push_back(slowest[0]);
  }
  const Work after = context.work();
  std::array<double, 1> flops{
      (after.matmul_flops + after.attention_flops - before.matmul_flops - before.attention_flops) /
      arguments.steps};
  mesh.world->all_reduce_sum(flops);
  int64_t gpu_bytes = 0;  // nothing that the steps have taken is given back before
  if (context.on_gpu()) {
    const device_runtime::MemoryInfo memory = device_runtime::memory_info();
    gpu_bytes = memory.total - memory.free;
  }
  peak = std::max(peak, peak_of_all());
  if (mesh.world->rank() != 0) return 0;
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  peak = std::max(peak, flops[0] / seconds.front() / 1e9);
  Json json = header("step", mesh.world->size());
  json["threads"] = context.threads();
  json["isa"] = isa_name(context.isa());
  json["config"] = arguments.config;
  json["dtype"] = config.run.dtype;
  json["parameters"] = learner.layout().parameter_count();
  json["tokens_per_step"] = result.targets;
  json["median_seconds"] = median;
  json["fastest_seconds"] = seconds.front();
  json["slowest_seconds"] = seconds.back();
  json["tokens_per_second"] = static_cast<double>(result.targets) / median;
  json["flops_per_step"] = flops[0];
  json["recomputed_flops_per_step_rank0"] =
      (after.recomputed_flops - before.recomputed_flops) / arguments.steps;
  if (context.on_gpu()) json["gpu_memory_used_bytes"] = gpu_bytes;
  json["matmul_peak_gflops"] = peak;
  json["share_of_matmul_peak"] = flops[0] / median / (peak * 1e9);
  for (const auto& [name, total] : context.seconds())
    json["seconds_per_step_rank0"][name] = total / arguments.steps;
  write_json(json);
  return 0;
}

// ------------------------------------------------------------------------------ collectives

struct CollectivesArguments {
  CollectiveBenchOptions options;
  std::string backend = "cpu";
  ParallelConfig parallel;  // timeout_s
};

int bench_collectives_command(const CollectivesArguments& arguments) {
  const CollectiveBenchOptions& options = arguments.options;
  auto host = world_communicator();
  run_on_root(*host, [&] {
    if (options.min_bytes > options.max_bytes)
      throw Error("--min-bytes {} is larger than --max-bytes {}", options.min_bytes,
                  options.max_bytes);
  });
  Context context = make_context(*host, arguments.backend, 0);
  const auto world = transport_of(context, std::move(host), arguments.parallel);
  const CollectiveReport report = bench_collectives(context, *world, options);
  if (world->rank() != 0) return 0;
  Json json = header("collectives", report.ranks);
  json["backend"] = arguments.backend;
  json["transport"] = report.transport;
  json["calls_per_repetition"] = report.calls;
  json["copy_gigabytes_per_second"] = report.copy_bandwidth / 1e9;
  for (const CollectiveResult& r : report.results)
    json["results"].push_back({{"operation", r.operation},
                               {"bytes", r.bytes},
                               {"median_seconds", r.seconds},
                               {"fastest_seconds", r.fastest_seconds},
                               {"slowest_seconds", r.slowest_seconds},
                               {"algorithm_gigabytes_per_second", r.algorithm_bandwidth / 1e9},
                               {"bus_gigabytes_per_second", r.bus_bandwidth / 1e9},
                               {"share_of_copy", r.bus_bandwidth / report.copy_bandwidth}});
  write_json(json);
  return 0;
}

}  // namespace

void register_bench(Command& app, Action& action) {
  Command command = app.add_subcommand("bench", "Measure: attention, step, collectives (JSON)");
  command.require_subcommand();

  auto attention = std::make_shared<AttentionArguments>();
  Command one = command.add_subcommand(
      "attention", "The attention kernels on one rank, as a share of a measured limit");
  AttentionBenchOptions& o = attention->options;
  const auto positive = whole_number(int64_t{1}, int64_t{1} << 40);
  one.add_option("--tokens", o.tokens, "N").check(positive).capture_default_str();
  one.add_option("--batch", o.batch, "B").check(positive).capture_default_str();
  one.add_option("--heads", o.heads, "H").check(positive).capture_default_str();
  one.add_option("--head-dim", o.head_dim, "D").check(whole_number(8, 256)).capture_default_str();
  Option branch = one.add_option("--branch", attention->branches, "W:R, repeatable; default 2048:1")
                      .repeatable();
  one.add_flag("--full", attention->full, "Without the causal mask");
  one.add_option("--backend", attention->backend, "cpu or cuda")
      .check(one_of({"cpu", "cuda"}))
      .capture_default_str();
  Option choice =
      one.add_option("--attention", attention->attention, "With --backend cuda: run.attention")
          .check(one_of(kAttentions))
          .capture_default_str();
  one.add_option("--dtype", attention->dtype, "f32 or bf16; default f32 on cpu, bf16 on cuda")
      .check(one_of({"f32", "bf16"}));
  Option position = one.add_option("--position", attention->position, "none, rope or xpos")
                        .check(one_of(kPositions))
                        .capture_default_str();
  one.add_option("--case", attention->cases,
                 "W:R,ATTENTION,POSITION, repeatable: measures one after the other, a line of JSON "
                 "each, limits once")
      .repeatable()
      .excludes(branch)
      .excludes(choice)
      .excludes(position);
  one.add_option("--repetitions", o.repetitions)
      .check(whole_number(1, 10000))
      .capture_default_str();
  one.add_option("--threads", attention->threads, "0: OpenMP's default")
      .check(whole_number(0, 4096));
  one.callback([attention, &action] {
    action = [attention] { return bench_attention_command(*attention); };
  });

  auto step = std::make_shared<StepArguments>();
  Command two = command.add_subcommand("step", "Training steps of a configuration, random tokens");
  two.add_option("CONFIG", step->config, "YAML file").required().transform(typed_path());
  two.add_option("SETTING", step->overrides, "key=value: settings that override the file");
  two.add_option("--steps", step->steps).check(whole_number(1, 100000)).capture_default_str();
  two.callback([step, &action] { action = [step] { return bench_step(*step); }; });

  auto collectives = std::make_shared<CollectivesArguments>();
  CollectiveBenchOptions& c = collectives->options;
  Command three = command.add_subcommand(
      "collectives",
      "All-gather, reduce-scatter, all-reduce: bus bandwidth as nccl-tests define it");
  const auto bytes = whole_number(int64_t{4}, int64_t{1} << 40);
  three.add_option("--backend", collectives->backend, "cpu or cuda")
      .check(one_of({"cpu", "cuda"}))
      .capture_default_str();
  three.add_option("--min-bytes", c.min_bytes).check(bytes).capture_default_str();
  three.add_option("--max-bytes", c.max_bytes).check(bytes).capture_default_str();
  three.add_option("--growth", c.growth).check(whole_number(2, 1024)).capture_default_str();
  three.add_option("--repetitions", c.repetitions)
      .check(whole_number(1, 10000))
      .capture_default_str();
  three
      .add_option("--timeout-s", collectives->parallel.timeout_s,
                  "With --backend cuda: parallel.timeout_s")
      .check(number_range(0, 1e9))
      .capture_default_str();
  three.callback([collectives, &action] {
    action = [collectives] { return bench_collectives_command(*collectives); };
  });
}

}  // namespace longnet
