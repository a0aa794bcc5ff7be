// The command line: options of the subcommands, their help and what is said about a wrong one.
//
// CLI11 does the work and stays in parser.cpp: its header takes a compiler 6 seconds in every file
// that includes it. Names are CLI11's where they exist.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace longnet {

/// A check of an option's text, which it may also change: empty, or what is wrong with it.
struct ValueCheck {
  std::function<std::string(std::string& text)> run;
  std::string allowed;  // for the help
};

/// An option or a positional argument of a command; a handle that may be copied.
class Option {
 public:
  explicit Option(CLI::Option* option) : option_(option) {}
  Option& required();
  Option& check(const ValueCheck& check);
  Option& transform(const ValueCheck& check);  // before checks and conversion
  Option& capture_default_str();               // the variable's value now goes into the help
  Option& repeatable();                        // a value each time
  Option& comma_separated();                   // "1,2,4"
  Option& excludes(const Option& other);

 private:
  CLI::Option* option_;
};

/// The program or a subcommand; a handle that may be copied.
class Command {
 public:
  explicit Command(CLI::App* app) : app_(app) {}
  Command add_subcommand(const std::string& name, const std::string& help);
  void require_subcommand();
  /// "--name", or "NAME" of a positional one, into `value`, which must outlive the parser. Value:
  /// std::string, int, int64_t, double, or a vector of strings, int or int64_t.
  template <typename Value>
  Option add_option(const std::string& name, Value& value, const std::string& help = "");
  void add_flag(const std::string& name, bool& value, const std::string& help);
  void footer(const std::string& text);
  /// Called when this is the subcommand that was chosen.
  void callback(std::function<void()> chosen);

 private:
  CLI::App* app_;
};

struct Parsed {
  enum Kind { kRun, kHelp, kFault };
  Kind kind = kRun;
  std::string text;  // kHelp: for standard output; kFault: one line, with the help to read
};

class Parser {
 public:
  Parser(const std::string& description, const std::string& version);
  ~Parser();
  Command root() { return Command(app_.get()); }
  /// Sets the options' variables and calls the callback of the chosen subcommand.
  Parsed parse(int argc, char** argv);

 private:
  std::unique_ptr<CLI::App> app_;
};

}  // namespace longnet
