// longnet plan CONFIG: what a configuration costs on P ranks, without running it.
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "train/agreement.h"
#include "train/metrics.h"
#include "train/plan_report.h"

namespace longnet {
namespace {

struct Arguments {
  std::string config;
  std::vector<std::string> overrides;
  std::vector<int> ranks;
  int rank = -1;
  bool json = false;
};

nlohmann::ordered_json to_json(const PlanReport& r) {
  nlohmann::ordered_json json{
      {"ranks", r.ranks}, {"sequence_ranks", r.sequence_ranks}, {"data_ranks", r.data_ranks},
      {"rank", r.rank},   {"local_tokens", r.local_tokens},     {"parameters", r.parameters}};
  for (const BranchPlan& b : r.branches)
    json["branches"].push_back({{"segment_length", b.segment_length},
                                {"dilation", b.dilation},
                                {"local_segments", b.local_segments},
                                {"gathered_ranks", b.gathered_ranks},
                                {"gathered_rows", b.gathered_rows}});
  for (const auto& [purpose, bytes] : r.memory) json["memory_bytes"][purpose] = bytes;
  json["memory_bytes"]["total"] = r.memory_total;
  json["bytes_per_step"] = {{"forward", r.forward_bytes},
                            {"forward_needed", r.forward_needed_bytes},
                            {"backward", r.backward_bytes},
                            {"gradients", r.gradient_bytes}};
  json["flops_per_step"] = {{"matmul", r.matmul_flops}, {"attention", r.attention_flops}};
  json["flops_per_token"] = r.flops_per_token;
  return json;
}

void print(const PlanReport& r) {
  fmt::print("{} rank{} = {} of one sequence x {} data-parallel; figures of rank {} and one step\n",
             r.ranks, r.ranks == 1 ? "" : "s", r.sequence_ranks, r.data_ranks, r.rank);
  fmt::print("  {} parameters, {} local tokens a sequence\n", r.parameters, r.local_tokens);
  for (const BranchPlan& b : r.branches) {
    std::string text = fmt::format("{} local segments", b.local_segments);
    for (size_t i = 0; i < b.gathered_ranks.size(); ++i)
      text += fmt::format(", one gathered over {} ranks ({} rows of all heads)",
                          b.gathered_ranks[i], b.gathered_rows[i]);
    fmt::print("  branch {}:{}: {}\n", b.segment_length, b.dilation, text);
  }
  std::string memory;
  for (const auto& [purpose, bytes] : r.memory)
    memory += fmt::format(" {} {},", purpose, bytes_text(bytes));
  fmt::print("  memory:{} in all {}\n", memory, bytes_text(r.memory_total));
  fmt::print("  sent: forward {} ({} needed), backward {}, gradients {}\n",
             bytes_text(r.forward_bytes), bytes_text(r.forward_needed_bytes),
             bytes_text(r.backward_bytes), bytes_text(r.gradient_bytes));
  fmt::print("  work: {:.4g} matmul + {:.4g} attention FLOPs, {:.4g} a token\n", r.matmul_flops,
             r.attention_flops, r.flops_per_token);
}

int plan(const Arguments& arguments) {
  const auto world = world_communicator();
  const Config config = load_config_on_all(*world, arguments.config, arguments.overrides);
  std::vector<int> ranks = arguments.ranks;
  if (ranks.empty())
    ranks.push_back(static_cast<int>(std::max<int64_t>(1, config.parallel.sequence_ranks) *
                                     std::max<int64_t>(1, config.parallel.data_ranks)));
  run_on_root(*world, [&] {
    nlohmann::ordered_json all = nlohmann::ordered_json::array();
    for (int count : ranks) {
      const PlanReport report = plan_run(config, count, arguments.rank);
      if (arguments.json)
        all.push_back(to_json(report));
      else
        print(report);
    }
    if (arguments.json) fmt::print("{}\n", (all.size() == 1 ? all[0] : all).dump(2));
  });
  return 0;
}

}  // namespace

void register_plan(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "plan", "Branches, bytes, memory and FLOPs of a configuration on P ranks, without a run");
  command->add_option("CONFIG", arguments->config, "YAML file")->required();
  command->add_option("key=value", arguments->overrides, "Settings over the file's");
  command->add_option("--ranks", arguments->ranks, "Ranks of the job; several: 1,2,4")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 1 << 24));
  command->add_option("--rank", arguments->rank, "Rank in the sequence; -1: the middle one")
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments, &action] { action = [arguments] { return plan(*arguments); }; });
}

}  // namespace longnet
