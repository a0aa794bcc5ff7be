// What several subcommands read from the command line in the same way.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "core/sequence_plan.h"
#include "dist/communicator.h"

namespace longnet {

/// "2048:1" -> {2048, 1}. Throws Error naming the option's text and what is allowed.
Branch parse_branch(const std::string& text);

/// A number from low to high; unlike CLI::Range it refuses "nan" and says short numbers.
CLI::Validator number_range(double low, double high);

/// Throws the same error on every rank (one line in all) if the job has more than one. Collective.
void require_one_rank(Communicator& world, const std::string& subcommand);

}  // namespace longnet
