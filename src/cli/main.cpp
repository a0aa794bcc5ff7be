// The program `longnet`: parses the command line, runs one subcommand and is the only place that
// catches. Exit codes: 0 done, 1 error, 2 usage. With several ranks an error ends all of them.
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/output.h"
#include "cli/parser.h"
#include "cli/waiting.h"
#include "core/config_keys.h"
#include "core/error.h"
#include "core/failure.h"
#include "core/log.h"
#include "core/system.h"
#include "core/text.h"
#include "train/agreement.h"
#include "train/learner.h"

namespace longnet {
namespace {

constexpr size_t kMaxMessage = 4000;  // bytes; a path may have 4096
std::string typed;

/// One line on standard error; newlines inside a message become spaces.
void print_error(int rank, int ranks, std::string message) {
  for (char& c : message)
    if (c == '\n' || c == '\r') c = ' ';
  message = one_line(message, kMaxMessage);
  if (ranks > 1)
    fmt::print(stderr, "error [rank {} of {} on {}]: {}\n", rank, ranks, host_name(), message);
  else
    fmt::print(stderr, "error: {}\n", message);
  std::fflush(stderr);
}

/// Prints --help or --version; failing to write them is an error, as for other results.
int print_help(const std::string& text) {
  try {
    write_output(text);
    flush_output();
    return 0;
  } catch (const Error& failure) {
    print_error(0, 1, failure.what());
    return 1;
  }
}

int run(int argc, char** argv) {
  Parser parser(
      "LongNet: dilated attention on sequences of any length, split over MPI ranks.\n"
      "Start several ranks with: mpirun -n RANKS longnet train CONFIG",
      "longnet 0.1.0");
  Command app = parser.root();
  Action action;
  register_train(app, action);
  register_evaluate(app, action);
  register_generate(app, action);
  register_attend(app, action);
  register_plan(app, action);
  register_bench(app, action);
  int rank = 0, ranks = 1;
  {
    const auto world = world_communicator();
    rank = world->rank();
    ranks = world->size();
  }
  if (const Parsed parsed = parser.parse(argc, argv); parsed.kind == Parsed::kHelp) {
    return rank == 0 ? print_help(parsed.text) : 0;
  } else if (parsed.kind == Parsed::kFault) {
    if (rank == 0) print_error(rank, ranks, parsed.text);
    return 2;
  }
  try {
    // Standard output is for results; a run's own log comes with its folder.
    init_log(rank, "", "info");
    const int exit_code = action();
    flush_output();
    return exit_code;
  } catch (const SilentError&) {
    return 1;
  } catch (const NonFiniteError& error) {  // the same on every rank
    if (rank == 0) print_error(rank, ranks, error.what());
    return 1;
  } catch (const std::exception& error) {
    print_error(rank, ranks, failure_text(error));
    // Agreed errors reach all ranks (agreement.h); after any other one the rest may wait for ever.
    if (ranks > 1 && dynamic_cast<const AgreedError*>(&error) == nullptr) MpiSession::abort(1);
    return 1;
  }
}

}  // namespace

std::unique_ptr<Communicator> world_communicator() { return make_mpi_communicator(); }

void check_same_configuration(Communicator& world, const Config& config) {
  std::vector<std::string> lines;
  for (const internal::Key& key : internal::keys())
    lines.push_back(fmt::format("{}: {}", key.name, key.print(config)));
  check_same_on_all(world, "the configuration", lines);
}

Config load_config_on_all(Communicator& world, const std::string& path,
                          const std::vector<std::string>& overrides) {
  Config config;
  run_on_all(world, [&] { config = load_config(path, overrides); });
  check_same_configuration(world, config);
  set_host_timeout(config.parallel.timeout_s);  // holds for all that follows, set-up included
  return config;
}

const std::string& command_line() { return typed; }

}  // namespace longnet

int main(int argc, char** argv) {
  longnet::bound_spinning(argv);
  for (int i = 0; i < argc; ++i)
    longnet::typed += (i ? " " : "") + longnet::one_line(argv[i], std::string::npos);
  try {
    longnet::keep_standard_streams();
    longnet::MpiSession session(&argc, &argv);
    const int code = longnet::run(argc, argv);
    session.wait_for_all();
    return code;
  } catch (const std::exception& error) {
    longnet::print_error(0, 1, longnet::failure_text(error));
    longnet::MpiSession::abort(1);  // the other ranks may wait
  }
}
