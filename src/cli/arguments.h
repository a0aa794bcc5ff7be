// What several subcommands read from the command line in the same way.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/parser.h"
#include "core/sequence_plan.h"
#include "dist/communicator.h"

namespace longnet {

/// "2048:1" -> {2048, 1}. Throws Error naming the option's text and what is allowed.
Branch parse_branch(const std::string& text);

/// Checks of an option's value, with what is allowed in the message. CLI11's own take "nan" for a
/// number in any range, wrap negative ones to unsigned and print doubles with 300 digits.
ValueCheck number_range(double low, double high);
ValueCheck whole_number(int64_t low, int64_t high);
/// One of some words; another one gets the nearest as a hint.
ValueCheck one_of(std::vector<std::string> words);
/// For Option::transform: a path with "~" and variables expanded (core/path.h), not empty.
ValueCheck typed_path();

/// Throws the same error on every rank (one line in all) if the job has more than one. Collective.
void require_one_rank(Communicator& world, const std::string& subcommand);

}  // namespace longnet
