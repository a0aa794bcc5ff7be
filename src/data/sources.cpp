// See sources.h. Cache files are written under a temporary name, synced and renamed, so one that
// exists is whole; their names carry a hash of what they were made from (paths, sizes, times).
#include "data/sources.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "core/error.h"

namespace longnet {
namespace {

namespace fs = std::filesystem;

std::string cause() { return std::strerror(errno); }

/// Where a file's tokens begin and how wide they are.
struct Format {
  int width = 1;
  int64_t header_bytes = 0;
};

// llm.c's token files: 256 int32 header words (magic, version, tokens), then uint16 (GPT-2) or
// uint32 (Llama 3) tokens.
constexpr int32_t kMagicU16 = 20240520, kMagicU32 = 20240801;
constexpr int64_t kHeaderBytes = 1024;

constexpr int64_t kReadBytes = 1 << 20;  // of a token file at once
constexpr size_t kOpenFiles = 256;       // token files that stay open; 1024 descriptors are usual

int64_t file_size(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) throw Error("{}: {}; check the path", path, cause());
  return info.st_size;
}

bool has_suffix(const std::string& text, const std::string& suffix) {
  return text.size() >= suffix.size() &&
         text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
}

std::vector<std::string> split_commas(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) {
    part.erase(0, part.find_first_not_of(" \t"));
    part.erase(part.find_last_not_of(" \t") + 1);
    if (!part.empty()) parts.push_back(part);
  }
  return parts;
}

void add_folder(const std::string& folder, const std::string& key, const DataConfig& config,
                std::vector<std::string>& files) {
  const std::vector<std::string> extensions = split_commas(config.extensions);
  std::vector<std::string> found;
  std::error_code error;
  fs::recursive_directory_iterator it(folder, fs::directory_options::skip_permission_denied, error);
  if (error) throw Error("{}: folder {} cannot be read: {}", key, folder, error.message());
  const std::string cache = fs::weakly_canonical(config.cache, error).string() + "/";
  for (; it != fs::recursive_directory_iterator(); it.increment(error)) {
    if (!it->is_regular_file(error)) continue;
    const std::string path = it->path().string();
    // A cache inside the folder is no part of the data (it would grow with every run).
    if (fs::weakly_canonical(path, error).string().compare(0, cache.size(), cache) == 0) continue;
    if (!extensions.empty() &&
        std::none_of(extensions.begin(), extensions.end(),
                     [&](const std::string& e) { return has_suffix(path, e); }))
      continue;
    found.push_back(path);
  }
  if (error) throw Error("{}: folder {} cannot be read: {}", key, folder, error.message());
  if (found.empty())
    throw Error("{}: folder {} holds no file{}; check the path or data.extensions", key, folder,
                extensions.empty() ? "" : " ending in " + config.extensions);
  std::sort(found.begin(), found.end());
  files.insert(files.end(), found.begin(), found.end());
}

/// Entries -> files, in order; folders sorted by name.
std::vector<std::string> expand(const std::vector<std::string>& entries, const std::string& key,
                                const DataConfig& config, bool& folders) {
  std::vector<std::string> files;
  for (const std::string& entry : entries) {
    std::error_code error;
    if (fs::is_directory(entry, error)) {
      folders = true;
      add_folder(entry, key, config, files);
    } else if (fs::exists(entry, error)) {
      files.push_back(entry);
    } else if (entry.find_first_of("*?[") != std::string::npos) {
      glob_t matches{};
      const int status = glob(entry.c_str(), 0, nullptr, &matches);
      std::vector<std::string> found(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
      globfree(&matches);
      if (status != 0 || found.empty())
        throw Error("{}: no file matches {}; check the pattern", key, entry);
      files.insert(files.end(), found.begin(), found.end());
    } else {
      throw Error(
          "{}: {}: no such file or folder; run a script under scripts/data_*.sh or check "
          "the path",
          key, entry);
    }
  }
  return files;
}

uint64_t hash_text(const std::string& text) {  // FNV-1a, 64 bits
  uint64_t hash = 0xcbf29ce484222325u;
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3u;
  return hash;
}

bool exists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

/// What a cache file depends on: the file's absolute path, size and time.
std::string identity(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) throw Error("{}: {}; check the path", path, cause());
  return fmt::format("{}|{}|{}.{}\n", fs::absolute(path).string(), info.st_size,
                     info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
}

/// Writes one cache file: pieces go to a temporary name, finish() makes it appear.
class CacheWriter {
 public:
  CacheWriter(const std::string& folder, const std::string& path)
      : path_(path), temporary_(fmt::format("{}.tmp{}", path, getpid())) {
    std::error_code error;
    fs::create_directories(folder, error);
    file_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file_ < 0)
      throw Error("data.cache: {} cannot be written: {}; set data.cache to a folder that can",
                  path_, cause());
  }
  ~CacheWriter() {
    if (file_ < 0) return;
    close(file_);
    unlink(temporary_.c_str());
  }
  void write(const char* data, int64_t bytes) {
    while (bytes > 0) {
      const ssize_t written = ::write(file_, data, static_cast<size_t>(bytes));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0)
        throw Error("data.cache: writing {} failed: {}; free space or set data.cache", path_,
                    cause());
      data += written;
      bytes -= written;
    }
  }
  void finish() {
    if (fsync(file_) != 0 || close(file_) != 0 || rename(temporary_.c_str(), path_.c_str()) != 0)
      throw Error("data.cache: {} cannot be completed: {}", path_, cause());
    file_ = -1;
  }

 private:
  std::string path_, temporary_;
  int file_ = -1;
};

/// The unpacked form of a .gz file, made once.
std::string unpacked(const std::string& path, const DataConfig& config) {
  const std::string name = fs::path(path).stem().string();
  const std::string cached =
      fmt::format("{}/{}-{:016x}.unpacked", config.cache, name, hash_text("gz\n" + identity(path)));
  if (exists(cached)) return cached;
  gzFile input = gzopen(path.c_str(), "rb");
  if (input == nullptr) throw Error("{}: cannot be opened: {}", path, cause());
  struct Closer {
    gzFile file;
    ~Closer() { gzclose(file); }
  } closer{input};
  gzbuffer(input, 1 << 20);
  CacheWriter writer(config.cache, cached);
  std::vector<char> buffer(1 << 22);
  for (;;) {
    const int count = gzread(input, buffer.data(), static_cast<unsigned>(buffer.size()));
    int status = Z_OK;
    const char* text = gzerror(input, &status);
    // A stream that stops early reads to its end and only then reports Z_BUF_ERROR.
    if (count < 0 || status != Z_OK)
      throw Error("{}: damaged or truncated gzip file ({}); fetch it again", path,
                  status == Z_BUF_ERROR ? "unexpected end" : text);
    if (count == 0) break;
    if (gzdirect(input) != 0)
      throw Error("{}: not a gzip file though its name ends in .gz; rename it or fetch it again",
                  path);
    writer.write(buffer.data(), count);
  }
  writer.finish();
  return cached;
}

/// What a joined file was made from, beside it as .json (for people; the name carries the hash).
void write_manifest(const std::string& cached, const std::vector<std::string>& files,
                    const DataConfig& config) {
  nlohmann::json manifest{{"separator", config.separator}, {"files", nlohmann::json::array()}};
  for (const std::string& file : files)
    manifest["files"].push_back({{"path", file}, {"bytes", file_size(file)}});
  CacheWriter writer(config.cache, cached + ".json");
  const std::string text =
      manifest.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  writer.write(text.data(), static_cast<int64_t>(text.size()));
  writer.finish();
}

/// Byte files one after another with the separator between them, made once.
std::string joined_file(const std::vector<std::string>& files, const DataConfig& config) {
  std::string made_from = fmt::format("join {}\n", config.separator);
  for (const std::string& file : files) made_from += identity(file);
  const std::string cached =
      fmt::format("{}/{}-files-{:016x}.joined", config.cache, files.size(), hash_text(made_from));
  if (exists(cached)) return cached;
  CacheWriter writer(config.cache, cached);
  std::vector<char> buffer(1 << 22);
  bool first = true;
  for (const std::string& file : files) {
    std::ifstream input(file, std::ios::binary);
    if (!input) throw Error("{}: cannot be opened: {}", file, cause());
    if (!first && config.separator >= 0) {
      const char separator = static_cast<char>(config.separator);
      writer.write(&separator, 1);
    }
    first = false;
    while (input.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) ||
           input.gcount() > 0)
      writer.write(buffer.data(), input.gcount());
    if (input.bad()) throw Error("{}: cannot be read: {}", file, cause());
  }
  write_manifest(cached, files, config);
  writer.finish();
  return cached;
}

/// How to read a file under data.format; checks an llm.c header against the file's size.
Format detect(const std::string& path, const DataConfig& config) {
  Format format;
  const int64_t size = file_size(path);
  int32_t header[3] = {};
  if (size >= static_cast<int64_t>(sizeof header)) {
    std::ifstream input(path, std::ios::binary);
    input.read(reinterpret_cast<char*>(header), sizeof header);
    if (!input) throw Error("{}: cannot be read: {}", path, cause());
  }
  const bool u16_header = header[0] == kMagicU16, u32_header = header[0] == kMagicU32;
  if (config.format == "bytes" || (config.format == "auto" && !u16_header && !u32_header))
    return format;
  format.width = config.format == "tokens_u16"   ? 2
                 : config.format == "tokens_u32" ? 4
                 : u16_header                    ? 2
                                                 : 4;
  if (u16_header || u32_header) {
    const int header_width = u16_header ? 2 : 4;
    if (format.width != header_width)
      throw Error(
          "{}: its llm.c header says {}-byte tokens, data.format says {}; set "
          "data.format=auto",
          path, header_width, config.format);
    format.header_bytes = kHeaderBytes;
    const int32_t version = u16_header ? 1 : 7;
    if (header[1] != version)
      throw Error("{}: llm.c header of version {}; version {} is read; write the file anew", path,
                  header[1], version);
    if (size < kHeaderBytes)
      throw Error("{}: {} bytes, shorter than llm.c's header of {}; it is truncated", path, size,
                  kHeaderBytes);
    const int64_t held = (size - kHeaderBytes) / format.width;
    if (header[2] < 0 || header[2] != held || (size - kHeaderBytes) % format.width != 0)
      throw Error(
          "{}: its header promises {} tokens, the file holds {}; it is truncated or damaged", path,
          header[2], held);
  } else if (size % format.width != 0) {
    throw Error("{}: {} bytes is no whole number of {}-byte tokens; check data.format={}", path,
                size, format.width, config.format);
  }
  return format;
}

/// Little-endian numbers of `width` bytes -> int64.
void widen(const unsigned char* data, int width, int64_t count, int64_t* out) {
  const auto each = [&](auto number) {
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(&number, data + i * static_cast<int64_t>(sizeof number), sizeof number);
      out[i] = number;
    }
  };
  if (width == 1) each(uint8_t{});
  if (width == 2) each(uint16_t{});
  if (width == 4) each(uint32_t{});
}

}  // namespace

// --------------------------------------------------------------------------------- TokenFile

TokenFile::TokenFile(const std::string& path, int64_t header_bytes, int width, bool hold)
    : path_(path), header_bytes_(header_bytes), width_(width) {
  InputFile file(path);
  file_bytes_ = file.size();
  tokens_ = std::max<int64_t>(0, file_bytes_ - header_bytes) / width;
  if (hold) file_.emplace(std::move(file));
}

void TokenFile::copy(int64_t begin, int64_t count, int64_t* out) const {
  LN_CHECK(begin >= 0 && count >= 0 && begin + count <= tokens_, "tokens [{}, {}) of {}", begin,
           begin + count, tokens_);
  std::optional<InputFile> opened;
  if (!file_) {
    opened.emplace(path_);
    if (opened->size() != file_bytes_)
      throw Error("{}: holds {} bytes, it held {} at the start; it was changed while in use", path_,
                  opened->size(), file_bytes_);
  }
  const InputFile& file = file_ ? *file_ : *opened;
  std::vector<unsigned char> piece(
      static_cast<size_t>(std::min(count * width_, kReadBytes)));  // a multiple of every width
  for (int64_t done = 0; done < count;) {
    const int64_t part = std::min(count - done, static_cast<int64_t>(piece.size()) / width_);
    file.read(byte_offset(begin + done), piece.data(), part * width_);
    widen(piece.data(), width_, part, out + done);
    done += part;
  }
}

Sources open_sources(const std::vector<std::string>& entries, const std::string& key,
                     const DataConfig& config) {
  if (entries.empty()) throw Error("{}: no data given; name a file, folder or pattern", key);
  bool folders = false;
  std::vector<std::string> files = expand(entries, key, config, folders);
  for (std::string& file : files)
    if (has_suffix(file, ".gz")) file = unpacked(file, config);
  std::vector<Format> formats;
  for (const std::string& file : files) formats.push_back(detect(file, config));
  for (size_t i = 1; i < files.size(); ++i)
    if (formats[i].width != formats[0].width)
      throw Error("{}: {} holds {}-byte tokens, {} {}-byte ones; give files of one kind", key,
                  files[0], formats[0].width, files[i], formats[i].width);
  Sources sources;
  sources.source_files = static_cast<int64_t>(files.size());
  if (formats[0].width == 1) {
    const std::string path = files.size() == 1 ? files[0] : joined_file(files, config);
    sources.files.emplace_back(path, 0, 1, true);
  } else {
    for (size_t i = 0; i < files.size(); ++i)
      sources.files.emplace_back(files[i], formats[i].header_bytes, formats[i].width,
                                 files.size() <= kOpenFiles);
  }
  int64_t tokens = 0;
  for (const TokenFile& source : sources.files) tokens += source.tokens();
  if (tokens == 0)
    throw Error("{}: {} is empty; give data with at least one sequence", key, files[0]);
  return sources;
}

}  // namespace longnet
