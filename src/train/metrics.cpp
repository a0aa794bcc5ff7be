// See metrics.h.
#include "train/metrics.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/json.h"
#include "core/log.h"
#include "core/output_file.h"
#include "core/system.h"
#include "train/run_folder.h"

namespace longnet {

double bits_per_byte(double nats, double bytes_per_token) {
  return bytes_per_token > 0 ? nats / std::log(2.0) / bytes_per_token : -1.0;
}

std::string bytes_text(int64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1000 && unit < 5) {
    value /= 1000;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.3g} {}", value, kUnits[unit]);
}

int64_t memory_in_use(const Context& context) {
  if (!context.on_gpu()) return resident_bytes();
  const device_runtime::MemoryInfo memory = device_runtime::memory_info();
  return memory.total - memory.free;
}

int64_t peak_resident_bytes() {
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * int64_t{1024};
}

namespace {

std::string metrics_path(const RunConfig& run) { return run.folder + "/metrics.jsonl"; }

/// Columns of the terminal that shows this process's standard error; 0: it is shown on none. Under
/// mpirun standard error is a pipe to mpirun; where that runs on this host, its own is asked.
int terminal_columns() {
  int file = dup(STDERR_FILENO);
  if (file >= 0 && isatty(file) == 0 && std::getenv("OMPI_COMM_WORLD_RANK") != nullptr) {
    close(file);
    file = open(fmt::format("/proc/{}/fd/2", getppid()).c_str(), O_WRONLY | O_NOCTTY | O_NONBLOCK);
  }
  if (file < 0) return 0;
  int columns = 0;
  struct winsize size {};
  if (isatty(file) != 0)
    columns = ioctl(file, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
  close(file);
  return columns;
}

/// What of the line fits: whole items between ", ", at least as much as fits of the first.
std::string fitting(const std::string& line, size_t columns) {
  if (line.size() <= columns) return line;
  const size_t comma = line.rfind(", ", columns);
  return line.substr(0, comma == std::string::npos ? columns : comma);
}

/// keep(line, object) for every line that is an object with a step; a line cut short by a kill is
/// none.
template <typename Keep>
void for_lines(const std::string& text, Keep keep) {
  for (size_t begin = 0, end = 0; begin < text.size(); begin = end + 1) {
    end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    const nlohmann::json json = parse_json(line);
    if (json.is_object() && json.contains("step") && json["step"].is_number_integer())
      keep(line, json);
  }
}

/// Drops what is not of the run up to `place`. A history that cannot be read is never replaced.
void drop_lines_after(const std::string& path, const RunPlace& place) {
  const std::string text = read_metrics(path);
  std::string kept;
  for_lines(text, [&](const std::string& line, const nlohmann::json& json) {
    const int64_t step = json["step"].get<int64_t>();
    const auto rollbacks = json.find("rollbacks");  // of a step back that was not saved
    const bool undone = step == place.step && rollbacks != json.end() &&
                        rollbacks->is_number_integer() &&
                        rollbacks->get<int64_t>() > place.rollbacks;
    if (step <= place.step && !undone) kept += line + "\n";
  });
  if (kept == text) return;
  try {
    write_output_file(path, kept);
  } catch (const Error& cause) {
    throw Error(
        "{}; it has lines of steps that are repeated, and they must be dropped: make room on the "
        "disk or set another run.folder",
        cause.what());
  }
}

/// Line breaks stay, other control characters and what is not UTF-8 do not; every line is indented,
/// so that none looks like one of the log.
std::string shown_sample(const std::string& text) {
  const std::string valid = parse_json(json_text(nlohmann::json(text)));
  std::string shown = "  | ";
  for (const char c : valid) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n')
      shown += "\n  | ";
    else if (c == '\t' || (byte >= 0x20 && byte != 0x7F))
      shown += c;
    else
      shown += fmt::format("\\x{:02x}", byte);
  }
  return shown;
}

}  // namespace

bool lacks_evaluation(const RunConfig& run, int64_t step) {
  bool trained = false, evaluated = false;
  try {
    for_lines(read_metrics(metrics_path(run)), [&](const std::string&, const nlohmann::json& json) {
      if (json["step"].get<int64_t>() != step) return;
      trained = trained || json.contains("gradient_norm");
      evaluated = evaluated || json.contains("evaluation");
    });
  } catch (const Error&) {  // said where the file is opened to be continued
    return false;
  }
  return trained && !evaluated;
}

MetricsLog::MetricsLog(const RunConfig& run, const RunPlace& place)
    : run_(run), file_(metrics_path(run)) {
  display_ = run.progress == "on" || (run.progress == "auto" && terminal_columns() > 0);
  drop_lines_after(file_.path(), place);
  if (!file_.open())
    throw Error("{}: cannot be written: {}; check run.folder", file_.path(), file_.cause());
}

MetricsLog::~MetricsLog() { finish_line(); }

void MetricsLog::write(nlohmann::ordered_json json) {
  json["time"] = utc_time_text();
  const std::string line = json_text(json) + "\n";
  const int64_t missing = file_.failed();
  const bool written = file_.append(line);
  if (file_.renewed()) {
    finish_line();
    log_warn("{} was deleted or moved away during the run; a new one has been begun", file_.path());
  }
  if (written) {
    if (missing > 0)
      log_warn("{} can be written again; {} lines are missing", file_.path(), missing);
  } else if (missing == 0) {
    finish_line();
    log_warn("{}: cannot be written: {}; training continues, lines are counted", file_.path(),
             file_.cause());
  }
}

void MetricsLog::finish_line() {
  if (line_open_) std::fputs("\n", stderr);
  line_open_ = false;
}

void MetricsLog::step(const StepMetrics& m) {
  nlohmann::ordered_json json{{"step", m.step}, {"loss", m.loss}};
  if (m.bits_per_byte >= 0) json["bits_per_byte"] = m.bits_per_byte;
  json["gradient_norm"] = m.gradient_norm;
  json["learning_rate"] = m.learning_rate;
  json["seconds"] = m.seconds;
  json["tokens_per_second"] = m.tokens_per_second;
  json["share_of_peak"] = m.share_of_peak;
  json["exchanged_bytes"] = m.exchanged_bytes;
  json["needed_bytes"] = m.needed_bytes;
  json["gradient_bytes"] = m.gradient_bytes;
  json["parameter_bytes"] = m.parameter_bytes;
  json["memory_bytes"] = m.memory_bytes;
  write(std::move(json));

  const bool last = m.step == m.steps;
  if (!display_ && !last && m.step % std::max<int64_t>(1, run_.log_every) != 0) return;
  const std::string bits =
      m.bits_per_byte >= 0 ? fmt::format(" ({:.3f} bits/byte)", m.bits_per_byte) : "";
  // In falling order of interest: a narrow terminal shows the beginning.
  const std::string line = fmt::format(
      "step {}/{}: loss {:.4f} nats{}, {:.0f} tokens/s, {:.1f} % of peak, norm {:.3g}, lr {:.3g}, "
      "sent {} + {} gradients{}, memory {}",
      m.step, m.steps, m.loss, bits, m.tokens_per_second, 100 * m.share_of_peak, m.gradient_norm,
      m.learning_rate, bytes_text(m.exchanged_bytes), bytes_text(m.gradient_bytes),
      m.parameter_bytes > 0 ? fmt::format(" + {} parameters", bytes_text(m.parameter_bytes)) : "",
      bytes_text(m.memory_bytes));
  if (!display_) return log_info("{}", line);
  if (last || m.step % std::max<int64_t>(1, run_.log_every) == 0) log_to_file(line);
  show(line, m.step, m.steps);
}

void MetricsLog::show(const std::string& line, int64_t step, int64_t steps) {
  // A line that wraps could not be rewritten, and the last column of some terminals wraps.
  const int columns = terminal_columns();
  const int bar = columns == 0 || columns >= 120 ? 20 : 6;
  const auto done = static_cast<int>(bar * step / std::max<int64_t>(1, steps));
  const std::string shown =
      fmt::format("[{}{}] {}", std::string(done, '='), std::string(bar - done, ' '), line);
  fmt::print(stderr, "\r\x1b[K{}",
             columns == 0 ? shown : fitting(shown, static_cast<size_t>(columns) - 1));
  std::fflush(stderr);
  line_open_ = true;
  if (step == steps) finish_line();
}

void MetricsLog::evaluation(int64_t step, const std::string& split, double loss, double bits,
                            int64_t tokens) {
  finish_line();
  nlohmann::ordered_json json{
      {"step", step}, {"evaluation", split}, {"loss", loss}, {"tokens", tokens}};
  if (bits >= 0) json["bits_per_byte"] = bits;
  write(json);
  log_info("step {}: {} loss {:.4f} nats{} over {} tokens", step, split, loss,
           bits >= 0 ? fmt::format(", {:.4f} bits/byte", bits) : "", tokens);
}

void MetricsLog::spike(const Spike& spike) {
  const bool back = spike.action == "rollback";
  // Of the step that the run is at from now on, so that a resumed run keeps the line.
  nlohmann::ordered_json json{{"step", back ? spike.went_back : spike.step},
                              {"spike", spike.action},
                              {"spike_step", spike.step},
                              {"spike_loss", spike.loss},
                              {"spike_limit", spike.limit}};
  if (back) {
    json["checkpoint"] = spike.checkpoint;
    json["skipped_sequences"] = spike.skipped;
    json["rollbacks"] = spike.rollbacks;
  }
  write(std::move(json));
}

void MetricsLog::sample(int64_t step, const std::string& text) {
  finish_line();
  write({{"step", step}, {"sample", text}});
  log_info("step {}: sample\n{}", step, shown_sample(text));
}

}  // namespace longnet
