// See output.h.
#include "cli/output.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "core/error.h"
#include "core/json.h"
#include "core/system.h"

namespace longnet {
namespace {

[[noreturn]] void output_failed() {
  const std::string cause = system_cause();
  throw Error("standard output cannot be written: {}; the result is lost or incomplete", cause);
}

}  // namespace

void keep_standard_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(stream, F_GETFD) != -1 || errno != EBADF) continue;
    // Lowest free number: `stream` itself. Only the log may vanish without a word.
    if (::open("/dev/null", stream == STDERR_FILENO ? O_WRONLY : O_RDONLY) != stream) return;
  }
}

void write_output(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) output_failed();
}

void write_json(const nlohmann::ordered_json& json, int indent) {
  write_output(json_text(json, indent) + "\n");
}

void flush_output() {
  if (std::fflush(stdout) != 0) output_failed();
}

}  // namespace longnet
