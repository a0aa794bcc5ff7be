// What the program says about a command line that cannot be read, in its own words: CLI11 finds the
// fault, here it gets a name, what is allowed and the nearest word.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace longnet {

/// One line, with the help to read at its end.
std::string usage_text(const CLI::App& app, const CLI::ParseError& error);

}  // namespace longnet
