// The subcommands of the program `longnet`. Each register_* adds one to the parser and, when it is
// the one chosen, sets `action` to what main() then runs; its result is the exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/config.h"
#include "dist/communicator.h"

namespace longnet {

using Action = std::function<int()>;

void register_train(CLI::App& app, Action& action);
void register_evaluate(CLI::App& app, Action& action);
void register_generate(CLI::App& app, Action& action);
void register_attend(CLI::App& app, Action& action);
void register_plan(CLI::App& app, Action& action);
void register_bench(CLI::App& app, Action& action);

/// Ranks of the job (one without mpirun).
std::unique_ptr<Communicator> world_communicator();
/// load_config on every rank, with one message if it fails. Collective.
Config load_config_on_all(Communicator& world, const std::string& path,
                          const std::vector<std::string>& overrides);
/// The program's command line as typed, for reports.
const std::string& command_line();

}  // namespace longnet
