// See cache.h. The name of a cache file contains a hash of its sources: absolute paths, sizes and
// times. Two processes may make the same file at once; the later one stays.
#include "data/cache.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/input_file.h"
#include "core/json.h"
#include "core/output_file.h"
#include "core/system.h"
#include "data/content_hash.h"
#include "data/gzip.h"

namespace longnet {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int64_t kPieceBytes = 4 << 20;
constexpr int64_t kLargestManifest = int64_t{1} << 30;  // names millions of files

std::string hash_text(const std::string& text) {
  ContentHash hash;
  for (const unsigned char c : text) hash.add(c);
  return hash.text();
}

/// Of the file's content, as far as sample_places() looks.
std::string content_hash(const InputFile& file) {
  ContentHash hash;
  std::vector<unsigned char> piece;
  sample_places(file.size(), kHashedBytes, [&](int64_t first, int64_t count) {
    piece.resize(static_cast<size_t>(count));
    file.read(first, piece.data(), count);
    for (const unsigned char c : piece) hash.add(c);
  });
  return hash.text();
}

/// What a cache file depends on: the source's absolute path, size and time.
std::string identity(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) throw Error("{}: cannot be read: {}", path, system_cause());
  return fmt::format("{}|{}|{}.{}\n", fs::absolute(path).string(), info.st_size,
                     info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
}

/// True if the file matches its manifest.
bool is_intact(const std::string& cached) {
  std::error_code error;
  for (const std::string& path : {cached, cached + ".json"})
    if (!fs::is_regular_file(fs::symlink_status(path, error))) return false;
  const Json manifest = parse_json(read_input_file(cached + ".json", kLargestManifest));
  if (!manifest.is_object() || !manifest.contains("bytes") || !manifest.contains("hash"))
    return false;
  const InputFile file(cached);
  return manifest["bytes"] == file.size() && manifest["hash"] == content_hash(file);
}

/// Runs `fill` on a new cache file and writes its manifest after it.
template <typename Fill>
void make(const std::string& cached, const DataConfig& config, Json manifest, Fill fill) {
  std::error_code error;
  fs::create_directories(config.cache, error);
  if (error)
    throw Error("data.cache: {} cannot be made: {}; set data.cache to a folder that can",
                config.cache, error.message());
  for (const std::string& path : {cached, cached + ".json"}) {
    const fs::file_type type = fs::symlink_status(path, error).type();
    if (type == fs::file_type::symlink) fs::remove(path, error);  // what it points to is not ours
    if (type == fs::file_type::directory)
      throw Error("data.cache: {}: a folder where a file is to be; remove it", path);
  }
  try {
    OutputFile out(cached);
    fill(out);
    out.commit();
    const InputFile file(cached);
    manifest["bytes"] = file.size();
    manifest["hash"] = content_hash(file);
    write_output_file(cached + ".json", json_text(manifest, 1) + "\n");
  } catch (const Error& e) {
    const std::string text = e.what();
    if (text.rfind(cached, 0) != 0) throw;
    throw Error("data.cache: {}; free space or set data.cache to another folder", text);
  }
}

void append_file(OutputFile& out, const std::string& path, std::vector<char>& buffer) {
  const InputFile file(path);
  for (int64_t done = 0; done < file.size(); done += kPieceBytes) {
    const int64_t part = std::min(kPieceBytes, file.size() - done);
    file.read(done, buffer.data(), part);
    out.write(buffer.data(), part);
  }
}

}  // namespace

std::string unpacked_file(const std::string& path, const DataConfig& config) {
  const std::string cached =
      fmt::format("{}/{}-{}.unpacked", config.cache, fs::path(path).stem().string(),
                  hash_text("gz\n" + identity(path)));
  if (is_intact(cached)) return cached;
  make(cached, config, {{"unpacked_from", path}}, [&](OutputFile& out) {
    unpack_gzip(path, [&](const void* data, int64_t bytes) { out.write(data, bytes); });
  });
  return cached;
}

std::string joined_file(const std::vector<std::string>& files, const DataConfig& config) {
  std::string made_from = fmt::format("join {}\n", config.separator);
  Json manifest{{"separator", config.separator}, {"files", Json::array()}};
  for (const std::string& file : files) {
    made_from += identity(file);
    manifest["files"].push_back({{"path", file}, {"bytes", InputFile(file).size()}});
  }
  const std::string cached =
      fmt::format("{}/{}-files-{}.joined", config.cache, files.size(), hash_text(made_from));
  if (is_intact(cached)) return cached;
  make(cached, config, std::move(manifest), [&](OutputFile& out) {
    std::vector<char> buffer(kPieceBytes);
    for (size_t i = 0; i < files.size(); ++i) {
      const char separator = static_cast<char>(config.separator);
      if (i > 0 && config.separator >= 0) out.write(&separator, 1);
      append_file(out, files[i], buffer);
    }
  });
  return cached;
}

void clean_cache(const DataConfig& config) { remove_stale_temporaries(config.cache); }

}  // namespace longnet
