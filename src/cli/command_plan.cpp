// longnet plan CONFIG: what a configuration costs on P ranks, without running it. The figures are
// of one rank (train/plan_report.h); here they are only printed, as a table or as JSON.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/arguments.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "core/text.h"
#include "train/agreement.h"
#include "train/metrics.h"
#include "train/plan_report.h"

namespace longnet {
namespace {

constexpr int64_t kMostRanks = 1 << 24;

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
                            {"gradients", r.gradient_bytes},
                            {"parameters", r.parameter_bytes}};
  json["flops_per_step"] = {{"matmul", r.matmul_flops},
                            {"attention", r.attention_flops},
                            {"recomputed", r.recomputed_flops}};
  json["flops_per_token"] = r.flops_per_token;
  return json;
}

/// "953 local, 2 over 2 ranks": the segments of a branch on the reported rank.
std::string segments_text(const BranchPlan& branch) {
  std::vector<std::string> parts;
  if (branch.local_segments > 0) parts.push_back(fmt::format("{} local", branch.local_segments));
  const std::vector<int64_t>& ranks = branch.gathered_ranks;
  if (ranks.size() == 2 && ranks[0] == ranks[1])
    parts.push_back(fmt::format("2 over {} ranks", ranks[0]));
  else
    for (int64_t count : ranks) parts.push_back(fmt::format("1 over {} ranks", count));
  return parts.empty() ? "none" : joined(parts);
}

/// One row per quantity, one column per rank count.
void print(const std::vector<PlanReport>& reports) {
  std::vector<std::vector<std::string>> rows;
  const auto row = [&](const std::string& name, auto text) {
    rows.push_back({name});
    for (const PlanReport& r : reports) rows.back().push_back(text(r));
  };
  const auto bytes = [&](const std::string& name, int64_t PlanReport::*member) {
    row(name, [=](const PlanReport& r) { return bytes_text(r.*member); });
  };
  const auto flops = [&](const std::string& name, double PlanReport::*member) {
    row(name, [=](const PlanReport& r) { return fmt::format("{:.4g}", r.*member); });
  };
  row("ranks", [](const PlanReport& r) { return fmt::to_string(r.ranks); });
  row("sequence x data",
      [](const PlanReport& r) { return fmt::format("{} x {}", r.sequence_ranks, r.data_ranks); });
  row("rank looked at", [](const PlanReport& r) { return fmt::to_string(r.rank); });
  row("tokens of a sequence", [](const PlanReport& r) { return fmt::to_string(r.local_tokens); });
  row("parameters", [](const PlanReport& r) { return fmt::to_string(r.parameters); });
  rows.push_back({"segments of branch W:R"});
  for (size_t k = 0; k < reports[0].branches.size(); ++k) {
    const BranchPlan& branch = reports[0].branches[k];
    row(fmt::format("  {}:{}", branch.segment_length, branch.dilation),
        [k](const PlanReport& r) { return segments_text(r.branches[k]); });
  }
  rows.push_back({"memory of the rank"});
  for (size_t i = 0; i < reports[0].memory.size(); ++i)
    row("  " + reports[0].memory[i].first,
        [i](const PlanReport& r) { return bytes_text(r.memory[i].second); });
  bytes("  total", &PlanReport::memory_total);
  rows.push_back({"sent by the rank per step"});
  bytes("  keys, values", &PlanReport::forward_bytes);
  bytes("    of these needed", &PlanReport::forward_needed_bytes);
  bytes("  their gradients", &PlanReport::backward_bytes);
  bytes("  parameter gradients", &PlanReport::gradient_bytes);
  if (std::any_of(reports.begin(), reports.end(),
                  [](const PlanReport& r) { return r.parameter_bytes > 0; }))
    bytes("  updated parameters", &PlanReport::parameter_bytes);
  rows.push_back({"FLOPs of the rank per step"});
  flops("  matmul", &PlanReport::matmul_flops);
  flops("  attention", &PlanReport::attention_flops);
  flops("  recomputed", &PlanReport::recomputed_flops);
  flops("FLOPs per token", &PlanReport::flops_per_token);

  std::vector<size_t> width(reports.size() + 1, 0);
  for (const auto& cells : rows)
    for (size_t i = 0; i < cells.size(); ++i) width[i] = std::max(width[i], cells[i].size());
  for (const auto& cells : rows) {
    std::string line = cells.size() > 1 ? fmt::format("{:<{}}", cells[0], width[0]) : cells[0];
    for (size_t i = 1; i < cells.size(); ++i) line += fmt::format("  {:>{}}", cells[i], width[i]);
    write_output(line + "\n");
  }
}

int plan(const Arguments& arguments) {
  const auto world = world_communicator();
  const Config config = load_config_on_all(*world, arguments.config, arguments.overrides);
  std::vector<int> ranks = arguments.ranks;
  if (ranks.empty()) {
    const int64_t all = std::max<int64_t>(1, config.parallel.sequence_ranks) *
                        std::max<int64_t>(1, config.parallel.data_ranks);
    if (all > kMostRanks)
      throw Error(
          "parallel.sequence_ranks ({}) times parallel.data_ranks ({}) is {} ranks; a plan has at "
          "most {}; lower one of them or give --ranks",
          config.parallel.sequence_ranks, config.parallel.data_ranks, all, kMostRanks);
    ranks.push_back(static_cast<int>(all));
  }
  run_on_root(*world, [&] {
    std::vector<PlanReport> reports;
    for (int count : ranks) reports.push_back(plan_run(config, count, arguments.rank));
    if (!arguments.json) return print(reports);
    nlohmann::ordered_json all = nlohmann::ordered_json::array();
    for (const PlanReport& report : reports) all.push_back(to_json(report));
    write_json(all.size() == 1 ? all[0] : all);
  });
  return 0;
}

}  // namespace

void register_plan(Command& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  Command command = app.add_subcommand(
      "plan", "Branches, bytes, memory and FLOPs of a configuration on P ranks, without training");
  command.add_option("CONFIG", arguments->config, "YAML file").required().transform(typed_path());
  command.add_option("SETTING", arguments->overrides, "key=value: settings that override the file");
  command.add_option("--ranks", arguments->ranks, "Ranks of the job; several: 1,2,4")
      .comma_separated()
      .check(whole_number(1, kMostRanks));
  command.add_option("--rank", arguments->rank, "Rank in the sequence; -1: the middle one")
      .check(whole_number(-1, kMostRanks - 1))
      .capture_default_str();
  command.add_flag("--json", arguments->json, "Print JSON");
  command.callback([arguments, &action] { action = [arguments] { return plan(*arguments); }; });
}

}  // namespace longnet
