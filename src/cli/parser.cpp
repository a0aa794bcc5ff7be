// See parser.h. What is said about a wrong command line is in our own words: CLI11 finds the fault,
// here it gets a name, what is allowed and the nearest word.
#include "cli/parser.h"

#include <CLI/CLI.hpp>
#include <cstdint>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/text.h"

namespace longnet {
namespace {

/// The subcommand that was reached, and how it is called: "longnet bench step".
const CLI::App& reached(const CLI::App& app, std::string& name) {
  const CLI::App* at = &app;
  name = "longnet";
  for (std::vector<CLI::App*> next = at->get_subcommands(); !next.empty();
       next = at->get_subcommands()) {
    at = next.front();
    name += " " + at->get_name();
  }
  return *at;
}

std::string meant(const std::string& word, const std::vector<std::string>& candidates) {
  const std::string near = nearest(word, candidates);
  return near.empty() ? "; allowed: " + joined(candidates)
                      : fmt::format("; did you mean {}?", near);
}

std::vector<std::string> subcommands_of(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::App* one : command.get_subcommands({})) names.push_back(one->get_name());
  return names;
}

std::vector<std::string> options_of(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

/// A word that nothing takes; empty if there is none. One-letter options stay with their dash.
std::string unexpected_word(const CLI::App& command) {
  const std::vector<std::string> rest = command.remaining(true);
  return rest.empty() ? "" : rest.front();
}

std::string about_word(const CLI::App& command, const std::string& word) {
  if (!word.empty() && word[0] == '-')
    return fmt::format("unknown option {}{}", in_quotes(word.substr(0, word.find('='))),
                       meant(word.substr(0, word.find('=')), options_of(command)));
  const std::vector<std::string> subcommands = subcommands_of(command);
  if (!subcommands.empty())
    return fmt::format("unknown subcommand {}{}", in_quotes(word), meant(word, subcommands));
  return fmt::format("unexpected argument {}", in_quotes(word));
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::string fault(const CLI::App& command, const CLI::ParseError& error) {
  const std::string text = error.what();
  const std::string word = unexpected_word(command);
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr && !word.empty())
    return about_word(command, word);
  if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
    const std::vector<std::string> subcommands = subcommands_of(command);
    if (!subcommands.empty())
      return word.empty() ? "a subcommand is missing; allowed: " + joined(subcommands)
                          : about_word(command, word);
    return !word.empty() && word[0] == '-' ? about_word(command, word) : text;  // "IN is required"
  }
  const size_t colon = text.find(": ");
  const std::string option = text.substr(0, colon);
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr && colon != std::string::npos)
    return ends_with(text, "missing") ? option + ": a value is missing"
                                      : option + ": is given more than once; keep one";
  if (dynamic_cast<const CLI::ConversionError*>(&error) != nullptr && colon != std::string::npos) {
    // "Could not convert: --json = x"
    const std::string pair = text.substr(colon + 2);
    const size_t equals = pair.find(" = ");
    if (equals != std::string::npos)
      return fmt::format("{}: {} is not allowed", pair.substr(0, equals),
                         in_quotes(pair.substr(equals + 3)));
  }
  return text;
}

/// The option whose comma-separated value has an empty entry; empty if there is none. CLI11 leaves
/// such entries out.
std::string with_empty_entry(const CLI::App& app, int argc, char** argv) {
  std::string command;
  for (const CLI::Option* option : reached(app, command).get_options()) {
    if (option->get_delimiter() != ',') continue;
    for (int i = 1; i < argc; ++i) {
      const std::string word = argv[i], name = option->get_name();
      std::string value;
      if (word == name && i + 1 < argc)
        value = argv[i + 1];
      else if (word.compare(0, name.size() + 1, name + "=") == 0)
        value = word.substr(name.size() + 1);
      else
        continue;
      if (("," + value + ",").find(",,") != std::string::npos)
        return fmt::format("{}: {} has an empty entry; give the values with one comma between them",
                           name, in_quotes(value));
    }
  }
  return "";
}

/// One line, with the help to read at its end.
std::string usage_text(const CLI::App& app, const CLI::ParseError& error) {
  std::string name;
  const CLI::App& command = reached(app, name);
  return fmt::format("{}; see {} --help", fault(command, error), name);
}

}  // namespace

Option& Option::required() {
  option_->required();
  return *this;
}

Option& Option::check(const ValueCheck& check) {
  option_->check(CLI::Validator(check.run, check.allowed));
  return *this;
}

Option& Option::transform(const ValueCheck& check) {
  option_->transform(CLI::Validator(check.run, check.allowed));
  return *this;
}

Option& Option::capture_default_str() {
  option_->capture_default_str();
  return *this;
}

Option& Option::repeatable() {
  option_->take_all()->allow_extra_args(false);
  return *this;
}

Option& Option::comma_separated() {
  option_->delimiter(',')->allow_extra_args(false);
  return *this;
}

Option& Option::excludes(const Option& other) {
  option_->excludes(other.option_);
  return *this;
}

Command Command::add_subcommand(const std::string& name, const std::string& help) {
  return Command(app_->add_subcommand(name, help));
}

void Command::require_subcommand() { app_->require_subcommand(1); }

template <typename Value>
Option Command::add_option(const std::string& name, Value& value, const std::string& help) {
  return Option(app_->add_option(name, value, help));
}
template Option Command::add_option(const std::string&, std::string&, const std::string&);
template Option Command::add_option(const std::string&, int&, const std::string&);
template Option Command::add_option(const std::string&, int64_t&, const std::string&);
template Option Command::add_option(const std::string&, double&, const std::string&);
template Option Command::add_option(const std::string&, std::vector<std::string>&,
                                    const std::string&);
template Option Command::add_option(const std::string&, std::vector<int>&, const std::string&);
template Option Command::add_option(const std::string&, std::vector<int64_t>&, const std::string&);

void Command::add_flag(const std::string& name, bool& value, const std::string& help) {
  app_->add_flag(name, value, help);
}

void Command::footer(const std::string& text) { app_->footer(text); }

void Command::callback(std::function<void()> chosen) { app_->callback(std::move(chosen)); }

Parser::Parser(const std::string& description, const std::string& version)
    : app_(std::make_unique<CLI::App>(description)) {
  app_->set_version_flag("--version", version);
  app_->require_subcommand(1);
}

Parser::~Parser() = default;

Parsed Parser::parse(int argc, char** argv) {
  try {
    app_->parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) return {Parsed::kFault, usage_text(*app_, error)};
    std::ostringstream text, nothing;  // --help and --version
    app_->exit(error, text, nothing);
    return {Parsed::kHelp, text.str()};
  }
  if (const std::string text = with_empty_entry(*app_, argc, argv); !text.empty())
    return {Parsed::kFault, text};
  return {};
}

}  // namespace longnet
