// See arguments.h.
#include "cli/arguments.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <utility>

#include "core/path.h"
#include "core/text.h"
#include "train/agreement.h"

namespace longnet {
namespace {

/// The whole text as a number of at least 1, or 0.
int64_t count_of(const char* begin, const char* end) {
  int64_t value = 0;
  const auto [stop, problem] = std::from_chars(begin, end, value);
  return problem == std::errc() && stop == end && value >= 1 ? value : 0;
}

}  // namespace

Branch parse_branch(const std::string& text) {
  const size_t colon = text.find(':');
  Branch branch;
  if (colon != std::string::npos) {
    branch.segment_length = count_of(text.data(), text.data() + colon);
    branch.dilation = count_of(text.data() + colon + 1, text.data() + text.size());
  }
  if (branch.segment_length == 0 || branch.dilation == 0)
    throw Error(
        "--branch {}: allowed: W:R, segment length and dilation in tokens, whole numbers of at "
        "least 1 such as 2048:1",
        in_quotes(text));
  return branch;
}

ValueCheck number_range(double low, double high) {
  const std::string range = fmt::format("{} to {}", low, high);
  const auto check = [=](std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    const bool fine = end != text.c_str() && *end == 0 && value >= low && value <= high;
    return fine ? std::string()
                : fmt::format("{} is not allowed; allowed: {}", in_quotes(text), range);
  };
  return {check, range};
}

ValueCheck whole_number(int64_t low, int64_t high) {
  const std::string range = fmt::format("{} to {}", low, high);
  const auto check = [=](std::string& text) {
    int64_t value = 0;
    const char* end = text.data() + text.size();
    const auto [stop, problem] = std::from_chars(text.data(), end, value);
    const bool whole = !text.empty() && stop == end && problem == std::errc();
    const bool large = stop == end && problem == std::errc::result_out_of_range;
    if (whole && value >= low && value <= high) return std::string();
    return fmt::format("{} is {}; allowed: {}", in_quotes(text),
                       whole || large ? "out of range" : "not a whole number", range);
  };
  return {check, range};
}

ValueCheck one_of(std::vector<std::string> words) {
  const std::string shown = "{" + joined(words, ",") + "}";
  const auto check = [words = std::move(words)](std::string& text) {
    if (std::find(words.begin(), words.end(), text) != words.end()) return std::string();
    const std::string near = nearest(text, words);
    return fmt::format("{} is not one of {}{}", in_quotes(text), joined(words),
                       near.empty() ? "" : fmt::format("; did you mean {}?", near));
  };
  return {check, shown};
}

ValueCheck typed_path() {
  const auto expand = [](std::string& text) {
    if (text.empty()) return std::string("the path is empty");
    try {
      text = expand_path(text);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  return {expand, ""};
}

void require_one_rank(Communicator& world, const std::string& subcommand) {
  run_on_root(world, [&] {
    if (world.size() > 1)
      throw Error("{} runs on one rank, this job has {}; start it without mpirun", subcommand,
                  world.size());
  });
}

}  // namespace longnet
