// See run_folder.h.
#include "train/run_folder.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.h"
#include "core/input_file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/output_file.h"

namespace longnet {
namespace {

namespace fs = std::filesystem;

constexpr const char* kMetricsFile = "metrics.jsonl";

/// The names in a folder; none if it is not there.
std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    names.push_back(it->path().filename().string());
  if (error && error != std::errc::no_such_file_or_directory)
    throw Error("{}: cannot be read: {}", folder, error.message());
  return names;
}

void rename_or_throw(const std::string& from, const std::string& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error) throw Error("{}: cannot be moved to {}: {}", from, to, error.message());
}

/// The first of FOLDER/set-aside-1, -2, ... that is free, made.
std::string make_aside(const std::string& folder) {
  for (int64_t n = 1;; ++n) {
    const std::string path = fmt::format("{}/set-aside-{}", folder, n);
    std::error_code error;
    if (fs::create_directory(path, error)) return path;
    std::error_code ignored;
    if (error && !fs::exists(path, ignored))
      throw Error("{}: cannot be created: {}", path, error.message());
  }
}

/// The lines of steps above last_step in a metrics file, which loses them when the run opens it.
std::string metrics_after(const std::string& path, int64_t last_step) {
  std::istringstream in(read_metrics(path));
  std::string lines;
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json json = parse_json(line);
    if (json.is_object() && json.contains("step") && json["step"].is_number_integer() &&
        json["step"].get<int64_t>() > last_step)
      lines += line + "\n";
  }
  return lines;
}

}  // namespace

std::string read_metrics(const std::string& path) {
  std::error_code error;
  if (fs::symlink_status(path, error).type() == fs::file_type::not_found) return "";
  constexpr int64_t kLargest = int64_t{16} << 30;
  try {
    return read_input_file(path, kLargest);
  } catch (const Error& cause) {
    throw Error(
        "{}; the metrics of the run so far would be lost: make it readable, move it away or set "
        "another run.folder",
        cause.what());
  }
}

std::string step_name(int64_t step) { return fmt::format("step-{:08}", step); }

std::optional<int64_t> step_of(const std::string& name) {
  if (name.rfind("step-", 0) != 0 || name.size() < 6 || name.size() > 23) return std::nullopt;
  if (!std::all_of(name.begin() + 5, name.end(), [](unsigned char c) { return std::isdigit(c); }))
    return std::nullopt;
  return std::stoll(name.substr(5));
}

std::pair<std::string, std::string> split_path(const std::string& path_in) {
  std::string path = path_in;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  std::string folder = fs::path(path).parent_path().string();
  return {folder.empty() ? "." : folder, fs::path(path).filename().string()};
}

std::vector<std::pair<int64_t, std::string>> checkpoints_in(const std::string& folder) {
  std::vector<std::pair<int64_t, std::string>> found;
  for (const std::string& name : names_in(folder)) {
    const auto step = step_of(name);
    const std::string path = folder + "/" + name;
    std::error_code ignored;  // what cannot be looked at counts: opening it says why
    if (step && !fs::is_regular_file(path, ignored)) found.emplace_back(*step, path);
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::optional<std::string> latest_checkpoint(const std::string& folder) {
  const auto all = checkpoints_in(folder);
  if (all.empty()) return std::nullopt;
  return all.back().second;
}

bool same_folder(const std::string& a, const std::string& b) {
  std::error_code error;
  return fs::equivalent(a, b, error) && !error;
}

bool holds_run(const std::string& folder) {
  std::error_code error;
  const auto bytes = fs::file_size(folder + "/" + kMetricsFile, error);
  return (!error && bytes > 0) || !checkpoints_in(folder).empty();
}

void remove_leftovers(const std::string& folder) {
  for (const std::string& name : names_in(folder)) {
    if (name.rfind(kReplacedPrefix, 0) == 0) {
      const std::string path = folder + "/" + name.substr(std::strlen(kReplacedPrefix));
      std::error_code ignored;
      if (!fs::exists(path, ignored)) {
        rename_or_throw(folder + "/" + name, path);
        log_warn("{}: the checkpoint before a save that was cut short is in place again", path);
        continue;
      }
    } else if (name.rfind(".tmp-step-", 0) != 0 && name.rfind(".old-step-", 0) != 0) {
      continue;
    }
    std::error_code error;
    fs::remove_all(folder + "/" + name, error);
    if (error)
      log_warn("{}/{}: left by an earlier run, cannot be removed: {}", folder, name,
               error.message());
  }
  remove_stale_temporaries(folder);
}

void remove_checkpoint(const std::string& path) {
  const auto [folder, name] = split_path(path);
  const std::string hidden = folder + "/.old-" + name;
  std::error_code error;
  fs::remove_all(hidden, error);
  if (!error) fs::rename(path, hidden, error);
  if (!error) fs::remove_all(hidden, error);
  if (!error) return;
  std::error_code ignored;
  log_warn("{}: an old checkpoint cannot be removed: {}; remove it by hand before the disk is full",
           fs::exists(path, ignored) ? path : hidden, error.message());
}

std::string set_aside(const std::string& folder, int64_t last_step, Aside what) {
  std::vector<std::string> names;
  for (const auto& [step, path] : checkpoints_in(folder))
    if (step > last_step) names.push_back(split_path(path).second);
  const bool all = last_step < 0;
  const std::string metrics = folder + "/" + kMetricsFile;
  const std::string lines = all ? "" : metrics_after(metrics, last_step);
  const bool alone = all ? holds_run(folder) : what == Aside::kMetricsAlone && !lines.empty();
  if (names.empty() && !alone) return "";
  const std::string aside = make_aside(folder), kept = aside + "/" + kMetricsFile;
  std::error_code error;
  if (!all) {
    try {
      write_output_file(kept, lines);
    } catch (const Error&) {
      fs::remove(aside, error);
      throw;
    }
  } else if (fs::exists(metrics, error)) {
    rename_or_throw(metrics, kept);
  }
  // The newest first: what a kill in between leaves is a run that ends earlier.
  for (auto name = names.rbegin(); name != names.rend(); ++name)
    rename_or_throw(folder + "/" + *name, aside + "/" + *name);
  return fmt::format("set aside in {}: {}the metrics of {}", aside,
                     names.empty() ? "" : fmt::format("{} and ", fmt::join(names, ", ")),
                     all ? "the run" : fmt::format("the steps after {}", last_step));
}

}  // namespace longnet
