// See checkpoint.h.
#include "train/checkpoint.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "core/config_keys.h"
#include "core/error.h"
#include "core/host_copy.h"
#include "core/input_file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/output_file.h"
#include "core/safetensors.h"
#include "core/system.h"

namespace longnet {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kOptimizerFile = "optimizer.safetensors";
constexpr const char* kConfigFile = "config.yaml";
constexpr const char* kStateFile = "state.json";
constexpr std::array<const char*, 3> kCheckedFiles{kModelFile, kOptimizerFile, kConfigFile};
constexpr int64_t kMaxStateBytes = 16 << 20;
constexpr int64_t kPieceElements = int64_t{4} << 20;  // 16 MiB, as files are written
constexpr int64_t kFloatBytes = sizeof(float);

struct Fingerprint {
  int64_t bytes = 0;
  uint32_t crc = 0;
  bool operator==(const Fingerprint&) const = default;

  void add(const void* data, int64_t count) {
    crc = static_cast<uint32_t>(crc32_z(crc, static_cast<const Bytef*>(data), size_t(count)));
    bytes += count;
  }
};

/// Reads the whole file. from_disk: not from the page cache where the system can tell them apart.
Fingerprint fingerprint(const std::string& path, bool from_disk = false) {
  const InputFile file(path);
  if (from_disk) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
      posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
      close(fd);
    }
  }
  std::vector<char> buffer(1 << 20);
  Fingerprint print;
  while (print.bytes < file.size()) {
    const int64_t count = std::min(file.size() - print.bytes, static_cast<int64_t>(buffer.size()));
    file.read(print.bytes, buffer.data(), count);
    print.add(buffer.data(), count);
  }
  return print;
}

/// Distinguishes a path that does not exist from one that cannot be accessed. wanted: S_IFDIR,
/// S_IFREG; missing: the text of the message.
void check_kind(const std::string& path, mode_t wanted, const char* missing) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) throw Error("{}: {}", path, missing);
    throw Error("{}: cannot be read: {}", path, system_cause());
  }
  if ((info.st_mode & S_IFMT) == wanted) return;
  throw Error("{}: {}", path, wanted == S_IFDIR ? "is not a folder" : "is not a regular file");
}

void check_finite(const std::string& name, int64_t begin, std::span<const float> values) {
  for (size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i]))
      throw UnsavableError("tensor {} holds {} at place {}", name, std::abs(values[i]),
                           begin + static_cast<int64_t>(i));
}

/// Puts elements [begin, begin + values.size()) of the flat layout.
using Fetch = std::function<void(int64_t begin, std::span<float> values)>;

/// context: of the buffer's GPU; null: it is in host memory.
Fetch fetch_from(const TensorView& flat, Context* context) {
  return [flat, context](int64_t begin, std::span<float> values) {
    const auto count = static_cast<int64_t>(values.size());
    if (context == nullptr)
      std::copy_n(flat.f32() + begin, count, values.begin());
    else
      copy_to_host(*context, values.data(), flat.slice(0, begin, count));
  };
}

Fetch fetch_from(MomentPieces& moments, MomentPieces::Which which) {
  return [&moments, which](int64_t begin, std::span<float> values) {
    moments.get(which, begin, values);
  };
}

/// Tensors that are fetched and checked piece by piece while they are written.
std::vector<SafetensorsTensor> named_tensors(const ParameterLayout& layout, const Fetch& fetch,
                                             const std::string& prefix) {
  std::vector<SafetensorsTensor> tensors;
  for (const ParameterInfo& info : layout.parameters()) {
    SafetensorsTensor tensor{prefix + info.name, DType::kF32, info.shape, nullptr, {}};
    tensor.read = [fetch, name = tensor.name, offset = info.offset](int64_t begin, void* to,
                                                                    int64_t bytes) {
      const std::span<float> values(static_cast<float*>(to), size_t(bytes / kFloatBytes));
      const int64_t first = begin / kFloatBytes;
      try {
        fetch(offset + first, values);
      } catch (const std::exception& error) {
        throw UnsavableError("{}", error.what());
      }
      check_finite(name, first, values);
    };
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

/// Checksum of everything in state.json except this field.
uint32_t state_checksum(Json json) {
  json.erase("crc32");
  // Keys in alphabetical order, so one text per content.
  const std::string text = json_text(json);
  Fingerprint print;
  print.add(text.data(), static_cast<int64_t>(text.size()));
  return print.crc;
}

/// Values of the flat layout's elements from `begin` on.
using Put = std::function<void(int64_t begin, std::span<const float> values)>;

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

Json read_state(const std::string& path) {
  const std::string file = path + "/" + kStateFile;
  Json json = parse_json(read_input_file(file, kMaxStateBytes));
  if (json.is_discarded())
    throw Error("{}: damaged or written by another program (not the expected JSON)", file);
  return json;
}

/// state.json, checked; config stays as it is.
Checkpoint checked_state(const std::string& path, const Json& json) {
  const std::string file = path + "/" + kStateFile;
  const int64_t version =
      whole_number(json, "format_version", 0, std::numeric_limits<int>::max(), file);
  if (version < 1 || version > kStateVersion)
    throw Error("{}: format version {}, this program reads 1 to {}", path, version, kStateVersion);
  const uint32_t checksum = state_checksum(json);
  const bool right = version == 1 ? !json.contains("crc32")
                                  : json.contains("crc32") && json.at("crc32") == checksum;
  if (!right) throw Error("{}: its checksum differs from the one written; it is damaged", file);
  // Not by one initializer list: g++ 12 destroys members twice where one of its values throws.
  Checkpoint checkpoint;
  checkpoint.path = path;
  checkpoint.state = state_from_json(json, static_cast<int>(version), file);
  checkpoint.id = checksum;
  const auto named = step_of(split_path(path).second);
  if (named && *named != checkpoint.state.step)
    throw Error("{}: the folder's name says step {}, its {} step {}; rename it to {}", path, *named,
                kStateFile, checkpoint.state.step, step_name(checkpoint.state.step));
  return checkpoint;
}

Fingerprint expected_of(const Json& json, const std::string& path, const char* name) {
  if (!json.contains("files") || !json.at("files").is_object() || !json.at("files").contains(name))
    throw Error("{}/{}: no checksum of {}", path, kStateFile, name);
  const std::string where = fmt::format("{}/{}: {}", path, kStateFile, name);
  const Json& entry = json.at("files").at(name);
  return {whole_number(entry, "bytes", 0, std::numeric_limits<int64_t>::max(), where),
          static_cast<uint32_t>(
              whole_number(entry, "crc32", 0, std::numeric_limits<uint32_t>::max(), where))};
}

void check_file(const std::string& file, const Fingerprint& expected, bool from_disk = false) {
  check_kind(file, S_IFREG, "the file is missing");
  const Fingerprint found = fingerprint(file, from_disk);
  if (found.bytes != expected.bytes)
    throw Error("{}: {} bytes, {} were written; it is truncated or changed", file, found.bytes,
                expected.bytes);
  if (found.crc != expected.crc)
    throw Error("{}: its checksum is {:08x}, {:08x} was written; it is damaged", file, found.crc,
                expected.crc);
}

/// All checks of open_checkpoint; messages name no way out.
Checkpoint read_checkpoint(const std::string& path) {
  check_kind(path + "/" + kStateFile, S_IFREG, "the file is missing");
  const Json json = read_state(path);
  Checkpoint checkpoint = checked_state(path, json);
  for (const char* name : kCheckedFiles)
    check_file(path + "/" + name, expected_of(json, path, name));
  checkpoint.config = load_config(path + "/" + kConfigFile, {});
  if (checkpoint.state.seed >= 0 && checkpoint.state.seed != checkpoint.config.train.seed)
    throw Error("{}/{}: seed is {}, {} says {}; it is damaged", path, kStateFile,
                checkpoint.state.seed, kConfigFile, checkpoint.config.train.seed);
  return checkpoint;
}

/// Whole, finite, and of a sensible loss.
bool is_good(const std::string& path) {
  try {
    const Checkpoint checkpoint = read_checkpoint(path);
    if (!has_sensible_loss(checkpoint.state, checkpoint.config.model.vocab_size)) return false;
    const SafetensorsFile model(path + "/" + kModelFile);
    for (const auto& [name, entry] : model.entries())
      for (int64_t begin = 0; begin < entry.elements(); begin += kPieceElements)
        check_finite(name, begin,
                     model.floats(name, begin, std::min(kPieceElements, entry.elements() - begin)));
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

/// "; go back with checkpoint.resume=..." for the newest good checkpoint before `path`, unless this
/// one is only kept from us.
std::string way_out(const std::string& path) {
  for (const char* file : {kStateFile, kModelFile, kOptimizerFile, kConfigFile})
    if (access((path + "/" + file).c_str(), R_OK) != 0 && errno == EACCES)
      return "; make its files readable for this user";
  const auto [folder, name] = split_path(path);
  const auto broken = step_of(name);
  const auto good = broken ? last_good_checkpoint(folder, *broken) : std::nullopt;
  return good ? fmt::format("; go back with checkpoint.resume={}", *good)
              : "; there is no earlier good one: start anew with checkpoint.resume=none "
                "run.overwrite=true, which sets this run aside";
}

/// Writes one file of the checkpoint; the checksum of what was written.
Fingerprint write_tensors(const std::string& path, const std::vector<SafetensorsTensor>& tensors,
                          const std::map<std::string, std::string>& metadata = {}) {
  Fingerprint print;
  write_safetensors(path, tensors, metadata,
                    [&](const void* data, int64_t bytes) { print.add(data, bytes); });
  return print;
}

Fingerprint write_text(const std::string& path, const std::string& text) {
  write_output_file(path, text);
  Fingerprint print;
  print.add(text.data(), static_cast<int64_t>(text.size()));
  return print;
}

Fingerprint write_optimizer(const std::string& path, const ParameterLayout& layout,
                            const TrainingTensors& tensors) {
  const auto fetch = [&](MomentPieces::Which which, const TensorView& flat) {
    return tensors.moments != nullptr ? fetch_from(*tensors.moments, which)
                                      : fetch_from(flat, tensors.context);
  };
  std::vector<SafetensorsTensor> moments =
      named_tensors(layout, fetch(MomentPieces::kFirst, tensors.first_moment), "first_moment.");
  for (SafetensorsTensor& tensor :
       named_tensors(layout, fetch(MomentPieces::kSecond, tensors.second_moment), "second_moment."))
    moments.push_back(std::move(tensor));
  return write_tensors(path, moments);
}

/// Writes all files into `folder`, syncs and reads them back.
void write_files(const std::string& folder, const Config& config, const ParameterLayout& layout,
                 const TrainingTensors& tensors, const TrainingState& state) {
  const std::string yaml = to_yaml(config);
  const std::array<Fingerprint, kCheckedFiles.size()> written{
      write_tensors(
          folder + "/" + kModelFile,
          named_tensors(layout, fetch_from(tensors.parameters, tensors.context), ""),
          {{"format", "longnet"}, {"step", std::to_string(state.step)}, {"config", yaml}}),
      write_optimizer(folder + "/" + kOptimizerFile, layout, tensors),
      write_text(folder + "/" + kConfigFile, yaml)};
  Json json = to_json(state);
  json["format_version"] = kStateVersion;
  json["seed"] = config.train.seed;
  for (size_t i = 0; i < written.size(); ++i)
    json["files"][kCheckedFiles[i]] = {{"bytes", written[i].bytes}, {"crc32", written[i].crc}};
  json["crc32"] = state_checksum(json);
  const std::string text = json_text(json, 2) + "\n";
  const Fingerprint state_written = write_text(folder + "/" + kStateFile, text);
  sync_folder(folder);
  for (size_t i = 0; i < written.size(); ++i)
    check_file(folder + "/" + kCheckedFiles[i], written[i], true);
  check_file(folder + "/" + kStateFile, state_written, true);
}

/// Renames a finished folder. An existing one of that name (the step is saved again) is removed
/// last.
void put_in_place(const std::string& temporary, const std::string& path) {
  const auto [folder, name] = split_path(path);
  const std::string hidden = folder + "/" + kReplacedPrefix + name;
  std::error_code error, ignored;
  const bool replaces = fs::exists(path, ignored);
  // In one go where the file system can: a kill in between leaves one of the two.
  if (replaces &&
      renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) == 0) {
    fs::remove_all(temporary, ignored);
    return;
  }
  // Elsewhere a kill in between leaves the old one under a name that the next start takes back.
  if (replaces) fs::remove_all(hidden, ignored);
  if (replaces) fs::rename(path, hidden, error);
  if (!error) fs::rename(temporary, path, error);
  if (error) {
    const std::string cause = error.message();
    if (replaces && !fs::exists(path, ignored)) fs::rename(hidden, path, ignored);
    throw Error("checkpoint: {} cannot be renamed to {}: {}", temporary, name, cause);
  }
  if (replaces) fs::remove_all(hidden, ignored);  // what stays is a leftover of the next start
}

/// Removes what is older than `state` beyond keep_last, counting good and bad ones apart, so that
/// no bad one takes a good one's place.
void remove_older(const std::string& folder, const Config& config, const TrainingState& state,
                  int64_t keep_last) {
  const auto all = checkpoints_in(folder);
  int64_t kept[2] = {0, 0};
  for (auto at = all.rbegin(); at != all.rend(); ++at) {
    // A run that went back keeps nothing from a future it left.
    if (at->first > state.step) continue;
    bool good = true;
    try {
      good = has_sensible_loss(peek_checkpoint(at->second).state, config.model.vocab_size);
    } catch (const Error&) {
      good = false;  // damaged: no place among the good ones
    }
    if (++kept[good ? 1 : 0] > keep_last) remove_checkpoint(at->second);
  }
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
    throw Error("checkpoint: {} cannot be created: {}; check run.folder", temporary,
                error.message());
  try {
    write_files(temporary, config, layout, tensors, state);
    put_in_place(temporary, final_path);
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
  sync_folder(folder);
  try {
    if (keep_last > 0) remove_older(folder, config, state, keep_last);
  } catch (const Error& failure) {  // this one is saved all the same
    log_warn("older checkpoints cannot be listed and stay: {}", failure.what());
  }
  return final_path;
}

Checkpoint peek_checkpoint(const std::string& path) {
  check_kind(path + "/" + kStateFile, S_IFREG, "the file is missing");
  return checked_state(path, read_state(path));
}

std::optional<std::string> last_good_checkpoint(const std::string& folder, int64_t before_step) {
  try {
    const auto all = checkpoints_in(folder);
    for (auto at = all.rbegin(); at != all.rend(); ++at)
      if (at->first < before_step && is_good(at->second)) return at->second;
  } catch (const Error&) {  // a folder that cannot be read has no way out
  }
  return std::nullopt;
}

Checkpoint open_checkpoint(const std::string& path_in) {
  std::string path = path_in;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  check_kind(path, S_IFDIR,
             "no such checkpoint; allowed: a folder step-NNNNNNNN inside a run's folder");
  std::error_code ignored;
  if (fs::exists(path, ignored) && !step_of(split_path(path).second) &&
      !fs::exists(path + "/" + kStateFile, ignored)) {
    if (const auto inside = latest_checkpoint(path))
      throw Error("{}: this is a run's folder, not a checkpoint; its latest one is {}", path,
                  *inside);
    throw Error("{}: not a checkpoint: {} is missing", path, kStateFile);
  }
  try {
    return read_checkpoint(path);
  } catch (const Error& error) {
    throw Error("checkpoint refused: {}{}", error.what(), way_out(path));
  }
}

void check_same_model(const Checkpoint& checkpoint, const ModelConfig& model) {
  Config ours;
  ours.model = model;
  for (const internal::Key& key : internal::keys()) {
    const std::string was = key.print(checkpoint.config), is = key.print(ours);
    if (key.section() == "model" && was != is)
      throw Error(
          "checkpoint refused: {} was made with {}: {}, the configuration says {}: {}; use the "
          "same model, another run.folder or checkpoint.resume=none run.overwrite=true",
          checkpoint.path, key.name, was, key.word(), is);
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
