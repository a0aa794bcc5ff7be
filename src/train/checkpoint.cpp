// See checkpoint.h.
#include "train/checkpoint.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "core/error.h"
#include "core/host_copy.h"
#include "core/safetensors.h"

namespace longnet {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int kFormatVersion = 2;  // 1 had no checksum of state.json; it is still read
constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kOptimizerFile = "optimizer.safetensors";
constexpr const char* kConfigFile = "config.yaml";
constexpr const char* kStateFile = "state.json";
constexpr std::array<const char*, 3> kCheckedFiles{kModelFile, kOptimizerFile, kConfigFile};

std::string step_name(int64_t step) { return fmt::format("step-{:08}", step); }

/// The step in a folder's name "step-N", or nothing.
std::optional<int64_t> step_of(const std::string& name) {
  if (name.rfind("step-", 0) != 0 || name.size() < 6 || name.size() > 23) return std::nullopt;
  if (!std::all_of(name.begin() + 5, name.end(), [](unsigned char c) { return std::isdigit(c); }))
    return std::nullopt;
  return std::stoll(name.substr(5));
}

void sync_path(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY);
  if (file < 0 || fsync(file) != 0) {
    const std::string cause = std::strerror(errno);
    if (file >= 0) close(file);
    throw Error("checkpoint: {} cannot be synced: {}", path, cause);
  }
  close(file);
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.flush();
  if (!out) throw Error("checkpoint: {} cannot be written: {}", path, std::strerror(errno));
  out.close();
  sync_path(path);
}

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Error("{}: cannot be read: {}", path, std::strerror(errno));
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

struct Fingerprint {
  int64_t bytes = 0;
  uint32_t crc = 0;
};

Fingerprint fingerprint(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Error("{}: cannot be read: {}", path, std::strerror(errno));
  std::vector<char> buffer(1 << 20);
  Fingerprint print;
  uLong crc = crc32(0, nullptr, 0);
  while (in.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || in.gcount() > 0) {
    crc = crc32(crc, reinterpret_cast<const Bytef*>(buffer.data()), static_cast<uInt>(in.gcount()));
    print.bytes += in.gcount();
  }
  print.crc = static_cast<uint32_t>(crc);
  return print;
}

/// context: of the buffer's GPU; null: it is in host memory.
std::vector<SafetensorsTensor> named_tensors(const ParameterLayout& layout, const TensorView& flat,
                                             Context* context, const std::string& prefix) {
  std::vector<SafetensorsTensor> tensors;
  for (const ParameterInfo& info : layout.parameters()) {
    SafetensorsTensor tensor{prefix + info.name, DType::kF32, info.shape, nullptr, {}};
    if (context == nullptr)
      tensor.data = flat.f32() + info.offset;
    else
      tensor.read = [flat, context, offset = info.offset](int64_t begin, void* to, int64_t bytes) {
        constexpr auto kWidth = static_cast<int64_t>(sizeof(float));
        copy_to_host(*context, to, flat.slice(0, offset + begin / kWidth, bytes / kWidth));
      };
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

std::vector<SafetensorsTensor> named_tensors(const ParameterLayout& layout, MomentPieces& moments,
                                             MomentPieces::Which which, const std::string& prefix) {
  std::vector<SafetensorsTensor> tensors;
  for (const ParameterInfo& info : layout.parameters())
    tensors.push_back(
        {prefix + info.name, DType::kF32, info.shape, nullptr,
         [&moments, which, offset = info.offset](int64_t begin, void* to, int64_t bytes) {
           constexpr auto kWidth = static_cast<int64_t>(sizeof(float));
           moments.get(which, offset + begin / kWidth,
                       {static_cast<float*>(to), size_t(bytes / kWidth)});
         }});
  return tensors;
}

/// Of everything that state.json says, but for this checksum itself.
uint32_t state_checksum(Json json) {
  json.erase("crc32");
  const std::string text = json.dump();  // keys in alphabetical order, so one text per content
  return static_cast<uint32_t>(
      crc32(0, reinterpret_cast<const Bytef*>(text.data()), static_cast<uInt>(text.size())));
}

/// Every checkpoint in a run's folder, by step.
std::vector<std::pair<int64_t, std::string>> checkpoints_in(const std::string& folder) {
  std::vector<std::pair<int64_t, std::string>> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (const auto step = step_of(entry.path().filename().string()); step && entry.is_directory())
      found.emplace_back(*step, entry.path().string());
  std::sort(found.begin(), found.end());
  return found;
}

/// Takes a folder out of sight first, so that a kill while deleting leaves no half checkpoint.
void remove_checkpoint(const std::string& path) {
  const fs::path hidden =
      fs::path(path).parent_path() / (".old-" + fs::path(path).filename().string());
  std::error_code error;
  fs::remove_all(hidden, error);
  fs::rename(path, hidden, error);
  fs::remove_all(hidden, error);
}

/// " ; use checkpoint.resume=..." for the checkpoint before `path`, if there is one.
std::string way_out(const std::string& path) {
  const fs::path folder = fs::path(path).parent_path();
  const auto broken = step_of(fs::path(path).filename().string());
  std::string previous;
  for (const auto& [step, candidate] : checkpoints_in(folder.empty() ? "." : folder.string()))
    if (broken && step < *broken) previous = candidate;
  return previous.empty() ? "; there is no earlier one: start anew with checkpoint.resume=none"
                          : fmt::format("; go back with checkpoint.resume={}", previous);
}

/// Values of the flat layout's elements from `begin` on.
using Put = std::function<void(int64_t begin, std::span<const float> values)>;

constexpr int64_t kPieceElements = int64_t{4} << 20;  // 16 MiB, as files are written

/// Gives every tensor's values to `put`, piece by piece, after all checks of that tensor.
void read_tensors(const SafetensorsFile& file, const ParameterLayout& layout,
                  const std::string& prefix, const Put& put) {
  for (const ParameterInfo& info : layout.parameters()) {
    const std::string name = prefix + info.name;
    if (!file.contains(name)) throw Error("{}: tensor {} is missing", file.path(), name);
    const SafetensorsEntry& entry = file.entry(name);
    if (entry.shape != info.shape)
      throw Error("{}: tensor {} has shape [{}], the model's is [{}]", file.path(), name,
                  fmt::join(entry.shape, ", "), fmt::join(info.shape, ", "));
    const auto each_piece = [&](const auto& use) {
      for (int64_t begin = 0; begin < info.elements; begin += kPieceElements)
        use(begin, file.floats(name, begin, std::min(kPieceElements, info.elements - begin)));
    };
    each_piece([&](int64_t begin, const std::vector<float>& values) {
      for (size_t i = 0; i < values.size(); ++i)
        if (!std::isfinite(values[i]))
          throw Error("{}: tensor {} holds a non-finite value at place {}", file.path(), name,
                      begin + static_cast<int64_t>(i));
    });
    each_piece(
        [&](int64_t begin, const std::vector<float>& values) { put(info.offset + begin, values); });
  }
}

Put into(const TensorView& flat, Context* context) {
  return [flat, context](int64_t begin, std::span<const float> values) {
    if (context == nullptr)
      std::copy(values.begin(), values.end(), flat.f32() + begin);
    else
      copy_from_host(*context, flat.slice(0, begin, static_cast<int64_t>(values.size())),
                     values.data());
  };
}

Put into(MomentPieces& moments, MomentPieces::Which which) {
  return [&moments, which](int64_t begin, std::span<const float> values) {
    moments.set(which, begin, values);
  };
}

}  // namespace

std::string save_checkpoint(const std::string& folder, const Config& config,
                            const ParameterLayout& layout, const TrainingTensors& tensors,
                            const TrainingState& state, int64_t keep_last) {
  const std::string final_path = folder + "/" + step_name(state.step);
  const std::string temporary = folder + "/.tmp-" + step_name(state.step);
  std::error_code error;
  fs::remove_all(temporary, error);
  fs::create_directories(temporary, error);
  if (error)
    throw Error("checkpoint: {} cannot be made: {}; check run.folder", temporary, error.message());

  const std::string yaml = to_yaml(config);
  write_safetensors(
      temporary + "/" + kModelFile, named_tensors(layout, tensors.parameters, tensors.context, ""),
      {{"format", "longnet"}, {"step", std::to_string(state.step)}, {"config", yaml}});
  const auto named_moments = [&](MomentPieces::Which which, const TensorView& flat,
                                 const std::string& prefix) {
    return tensors.moments != nullptr ? named_tensors(layout, *tensors.moments, which, prefix)
                                      : named_tensors(layout, flat, tensors.context, prefix);
  };
  std::vector<SafetensorsTensor> moments =
      named_moments(MomentPieces::kFirst, tensors.first_moment, "first_moment.");
  for (SafetensorsTensor& tensor :
       named_moments(MomentPieces::kSecond, tensors.second_moment, "second_moment."))
    moments.push_back(std::move(tensor));
  write_safetensors(temporary + "/" + kOptimizerFile, moments);
  write_text(temporary + "/" + kConfigFile, yaml);

  Json json{{"format_version", kFormatVersion},
            {"step", state.step},
            {"tokens_seen", state.tokens_seen},
            {"epoch", state.data.epoch},
            {"next_sample", state.data.next_sample}};
  for (const char* name : kCheckedFiles) {
    const Fingerprint print = fingerprint(temporary + "/" + name);
    json["files"][name] = {{"bytes", print.bytes}, {"crc32", print.crc}};
  }
  json["crc32"] = state_checksum(json);
  write_text(temporary + "/" + kStateFile, json.dump(2) + "\n");
  sync_path(temporary);
  if (fs::exists(final_path)) remove_checkpoint(final_path);
  fs::rename(temporary, final_path, error);
  if (error) throw Error("checkpoint: {} cannot be renamed: {}", temporary, error.message());
  sync_path(folder);

  if (keep_last > 0) {
    const auto all = checkpoints_in(folder);
    // Only what is older than this one: a run that went back keeps nothing from a future it left.
    std::vector<std::string> older;
    for (const auto& [step, path] : all)
      if (step <= state.step) older.push_back(path);
    for (size_t i = 0; i + static_cast<size_t>(keep_last) < older.size(); ++i)
      remove_checkpoint(older[i]);
  }
  return final_path;
}

std::optional<std::string> latest_checkpoint(const std::string& folder) {
  const auto all = checkpoints_in(folder);
  if (all.empty()) return std::nullopt;
  return all.back().second;
}

void remove_leftovers(const std::string& folder) {
  std::error_code error;
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind(".tmp-step-", 0) == 0 || name.rfind(".old-step-", 0) == 0)
      leftovers.push_back(entry.path());
  }
  for (const fs::path& path : leftovers) fs::remove_all(path, error);
}

Checkpoint open_checkpoint(const std::string& path_in) {
  std::string path = path_in;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  if (!fs::is_directory(path))
    throw Error("{}: no such checkpoint; allowed: a folder step-NNNNNNNN inside a run's folder",
                path);
  if (!fs::exists(path + "/" + kStateFile)) {
    const auto inside = latest_checkpoint(path);
    if (inside)
      throw Error("{}: this is a run's folder, not a checkpoint; its latest one is {}", path,
                  *inside);
    throw Error("{}: not a checkpoint: {} is missing{}", path, kStateFile, way_out(path));
  }
  Checkpoint checkpoint;
  checkpoint.path = path;
  try {
    Json json;
    try {
      json = Json::parse(read_text(path + "/" + kStateFile));
      const int version = json.at("format_version");
      if (version < 1 || version > kFormatVersion)
        throw Error("{}: format version {}, this program reads 1 to {}", path, version,
                    kFormatVersion);
      if (version == 1 ? json.contains("crc32") : json.at("crc32") != state_checksum(json))
        throw Error("{}/{}: its checksum is not the one that was written; it is damaged", path,
                    kStateFile);
      checkpoint.state.step = json.at("step");
      checkpoint.state.tokens_seen = json.at("tokens_seen");
      checkpoint.state.data.epoch = json.at("epoch");
      checkpoint.state.data.next_sample = json.at("next_sample");
    } catch (const Json::exception&) {
      throw Error("{}/{}: damaged or of another program (not the expected JSON)", path, kStateFile);
    }
    for (const char* name : kCheckedFiles) {
      const std::string file = path + "/" + name;
      if (!fs::exists(file)) throw Error("{}: the file is missing", file);
      Fingerprint expected;
      try {
        expected.bytes = json.at("files").at(name).at("bytes");
        expected.crc = json.at("files").at(name).at("crc32");
      } catch (const Json::exception&) {
        throw Error("{}/{}: no checksum of {}", path, kStateFile, name);
      }
      const Fingerprint found = fingerprint(file);
      if (found.bytes != expected.bytes)
        throw Error("{}: {} bytes, {} were written; it is truncated or changed", file, found.bytes,
                    expected.bytes);
      if (found.crc != expected.crc)
        throw Error("{}: its checksum is {:08x}, {:08x} was written; it is damaged", file,
                    found.crc, expected.crc);
    }
    checkpoint.config = load_config(path + "/" + kConfigFile, {});
  } catch (const Error& error) {
    throw Error("checkpoint refused: {}{}", error.what(), way_out(path));
  }
  return checkpoint;
}

void check_same_model(const Checkpoint& checkpoint, const ModelConfig& model) {
  const auto yaml_of = [](const ModelConfig& m) {
    Config config;
    config.model = m;
    return to_yaml(config);
  };
  std::istringstream theirs(yaml_of(checkpoint.config.model)), ours(yaml_of(model));
  for (std::string a, b; std::getline(theirs, a) && std::getline(ours, b);) {
    if (a == b) continue;
    const auto trimmed = [](std::string line) {
      line.erase(0, line.find_first_not_of(' '));
      return line.substr(0, line.find("  #"));
    };
    throw Error(
        "checkpoint refused: {} was made with model.{}, the configuration says {}; use the "
        "same model, another run.folder or checkpoint.resume=none",
        checkpoint.path, trimmed(a), trimmed(b));
  }
}

void load_tensors(const Checkpoint& checkpoint, const ParameterLayout& layout,
                  const TrainingTensors& tensors) {
  try {
    const SafetensorsFile model(checkpoint.path + "/" + kModelFile);
    read_tensors(model, layout, "", into(tensors.parameters, tensors.context));
    for (const auto& [name, entry] : model.entries())
      if (!layout.contains(name))
        throw Error("{}: tensor {} is not the model's", model.path(), name);
    if (tensors.moments == nullptr && !tensors.first_moment.defined()) return;
    const SafetensorsFile optimizer(checkpoint.path + "/" + kOptimizerFile);
    const auto into_moment = [&](MomentPieces::Which which, const TensorView& flat) {
      return tensors.moments != nullptr ? into(*tensors.moments, which)
                                        : into(flat, tensors.context);
    };
    read_tensors(optimizer, layout, "first_moment.",
                 into_moment(MomentPieces::kFirst, tensors.first_moment));
    read_tensors(optimizer, layout, "second_moment.",
                 into_moment(MomentPieces::kSecond, tensors.second_moment));
  } catch (const Error& error) {
    throw Error("checkpoint refused: {}{}", error.what(), way_out(checkpoint.path));
  }
}

}  // namespace longnet
