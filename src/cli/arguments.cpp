// See arguments.h.
#include "cli/arguments.h"

#include <charconv>
#include <cstdlib>

#include "core/text.h"
#include "train/agreement.h"

namespace longnet {
namespace {

/// The whole text as a number of at least 1, or 0.
int64_t whole_number(const char* begin, const char* end) {
  int64_t value = 0;
  const auto [stop, problem] = std::from_chars(begin, end, value);
  return problem == std::errc() && stop == end && value >= 1 ? value : 0;
}

}  // namespace

Branch parse_branch(const std::string& text) {
  const size_t colon = text.find(':');
  Branch branch;
  if (colon != std::string::npos) {
    branch.segment_length = whole_number(text.data(), text.data() + colon);
    branch.dilation = whole_number(text.data() + colon + 1, text.data() + text.size());
  }
  if (branch.segment_length == 0 || branch.dilation == 0)
    throw Error(
        "--branch {}: allowed is W:R, segment length and dilation in tokens, whole numbers of at "
        "least 1 such as 2048:1",
        in_quotes(text));
  return branch;
}

CLI::Validator number_range(double low, double high) {
  const std::string range = fmt::format("{} to {}", low, high);
  const auto check = [=](std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    const bool fine = end != text.c_str() && *end == 0 && value >= low && value <= high;
    return fine ? std::string()
                : fmt::format("{} is not allowed; allowed: {}", in_quotes(text), range);
  };
  return CLI::Validator(check, range);
}

void require_one_rank(Communicator& world, const std::string& subcommand) {
  run_on_root(world, [&] {
    if (world.size() > 1)
      throw Error("{} runs on one rank, this job has {}; start it without mpirun", subcommand,
                  world.size());
  });
}

}  // namespace longnet
