// The subcommands of the program `longnet`. Each register_* adds one to the parser and, when it is
// the one chosen, sets `action` to what main() then runs; its result is the exit code.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/parser.h"
#include "core/config.h"
#include "dist/communicator.h"

namespace longnet {

using Action = std::function<int()>;

void register_train(Command& app, Action& action);
void register_evaluate(Command& app, Action& action);
void register_generate(Command& app, Action& action);
void register_attend(Command& app, Action& action);
void register_plan(Command& app, Action& action);
void register_bench(Command& app, Action& action);

/// Ranks of the job (one without mpirun).
std::unique_ptr<Communicator> world_communicator();
/// Throws Error unless all ranks have this configuration. Collective.
void check_same_configuration(Communicator& world, const Config& config);
/// load_config on every rank, with one message if it fails or differs. Collective.
Config load_config_on_all(Communicator& world, const std::string& path,
                          const std::vector<std::string>& overrides);
/// The program's command line as typed, for reports.
const std::string& command_line();

}  // namespace longnet
