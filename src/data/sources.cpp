// See sources.h.
#include "data/sources.h"

#include <glob.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/text.h"
#include "data/cache.h"
#include "data/file_kind.h"

namespace longnet {
namespace {

namespace fs = std::filesystem;

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

/// What the entries name, and what was passed over on the way.
struct Found {
  std::vector<std::string> files;
  int64_t hidden = 0, cache_folders = 0, other_endings = 0, special = 0;
  std::vector<std::string> run_folders;

  std::string left_out() const {
    std::vector<std::string> words;
    const auto add = [&](size_t count, const std::string& what) {
      if (count > 0) words.push_back(fmt::format("{} {}", count, what));
    };
    add(run_folders.size(), run_folders.empty() ? "" : "run folder (" + run_folders[0] + ")");
    if (run_folders.size() > 1)
      words.back() = fmt::format("{} run folders ({}, ...)", run_folders.size(), run_folders[0]);
    add(cache_folders, "data.cache");
    add(hidden, "hidden");
    add(other_endings, "of other endings");
    add(special, "links to folders, broken links, pipes or devices");
    return joined(words);
  }
};

/// Collects a folder's files, unsorted. Whatever cannot be read is an error, never left out.
class FolderWalk {
 public:
  FolderWalk(const std::string& key, const DataConfig& config, Found& found)
      : key_(key), found_(found), extensions_(split_commas(config.extensions)) {
    std::error_code error;
    cache_ = fs::weakly_canonical(config.cache, error);
  }
  void walk(const fs::path& folder) {
    std::error_code error;
    fs::directory_iterator it(folder, error);
    if (error) fail(folder, error);
    for (; it != fs::directory_iterator(); it.increment(error)) {
      if (error) fail(folder, error);
      take(*it);
    }
    if (error) fail(folder, error);
  }

 private:
  const std::string& key_;
  Found& found_;
  std::vector<std::string> extensions_;
  fs::path cache_;

  [[noreturn]] void fail(const fs::path& path, const std::error_code& error) const {
    throw Error("{}: {} cannot be read: {}; change its permissions or move it elsewhere", key_,
                path.string(), error.message());
  }
  void take(const fs::directory_entry& entry) {
    const fs::path& path = entry.path();
    std::error_code error;
    if (path.filename().string()[0] == '.') {
      ++found_.hidden;
    } else if (entry.is_directory(error) && !entry.is_symlink(error)) {
      take_folder(path);
    } else if (!entry.is_regular_file(error)) {
      if (error && error != std::errc::no_such_file_or_directory) fail(path, error);
      ++found_.special;
    } else if (!extensions_.empty() &&
               std::none_of(extensions_.begin(), extensions_.end(),
                            [&](const std::string& e) { return has_suffix(path.string(), e); })) {
      ++found_.other_endings;
    } else {
      found_.files.push_back(path.string());
    }
  }
  void take_folder(const fs::path& path) {
    std::error_code error;
    if (fs::weakly_canonical(path, error) == cache_) {
      ++found_.cache_folders;
    } else if (is_run_folder(path.string())) {
      found_.run_folders.push_back(path.string());
    } else {
      walk(path);
    }
  }
};

void add_folder(const std::string& folder, const std::string& key, const DataConfig& config,
                Found& found) {
  if (is_run_folder(folder))
    throw Error(
        "{}: {} is the folder of a run or a checkpoint, not data; name another folder, or set "
        "run.folder to one outside the data",
        key, folder);
  const size_t before = found.files.size();
  FolderWalk(key, config, found).walk(folder);
  if (found.files.size() == before)
    throw Error("{}: folder {} holds no file{}; check the path or data.extensions", key, folder,
                config.extensions.empty() ? "" : " ending in " + config.extensions);
  std::sort(found.files.begin() + static_cast<std::ptrdiff_t>(before), found.files.end());
}

/// The folder that glob(3) could not read, and why; that function has no room for a context.
thread_local std::string glob_failure;

std::vector<std::string> glob_matches(const std::string& pattern, const std::string& key) {
  glob_failure.clear();
  const auto note = [](const char* path, int error) {
    if (error == ENOTDIR || error == ENOENT) return 0;  // a file where the pattern wants a folder
    glob_failure = fmt::format("{} cannot be read: {}", path, std::strerror(error));
    return 1;
  };
  glob_t matches{};
  const int status = glob(pattern.c_str(), 0, note, &matches);
  std::vector<std::string> found(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  globfree(&matches);
  if (!glob_failure.empty()) throw Error("{}: {}: {}", key, pattern, glob_failure);
  if (status != 0 || found.empty())
    throw Error("{}: no file matches {}; check the pattern", key, pattern);
  return found;
}

/// The remedy for a path that does not exist, derived from what does.
std::string missing_remedy(const std::string& entry) {
  for (const char* made : {"gcide.txt:gcide", "enwik8:enwik8", "linux_train.txt:linux_source",
                           "linux_validation.txt:linux_source"}) {
    const std::string text = made, name = text.substr(0, text.find(':'));
    if (entry == "data/" + name)
      return fmt::format("make it with scripts/data_{}.sh", text.substr(name.size() + 1));
  }
  const fs::path path(entry);
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  std::error_code error;
  const std::string here =
      path.is_absolute() ? "" : " (from " + fs::current_path(error).string() + ")";
  if (!fs::is_directory(folder, error))
    return fmt::format("there is no folder {}{} either; check the path", folder.string(), here);
  std::vector<std::string> names;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    names.push_back(it->path().filename().string());
  const std::string near = nearest(path.filename().string(), names);
  return near.empty() ? fmt::format("check the path{}", here)
                      : fmt::format("nearest: {}{}",
                                    path.has_parent_path() ? (folder / near).string() : near, here);
}

void add_entry(const std::string& entry, const std::string& key, const DataConfig& config,
               Found& found) {
  std::error_code error;
  const fs::file_status status = fs::status(entry, error);
  if (status.type() == fs::file_type::directory) return add_folder(entry, key, config, found);
  if (status.type() == fs::file_type::regular) return found.files.push_back(entry);
  if (status.type() == fs::file_type::none)
    throw Error("{}: {} cannot be read: {}", key, entry, error.message());
  if (status.type() != fs::file_type::not_found)
    throw Error(
        "{}: {} is {}; data must be a regular file, as they are read at any place: write them to "
        "one first",
        key, entry, irregular_kind(entry));
  if (entry.find_first_of("*?[") == std::string::npos)
    throw Error("{}: {}: no such file or folder; {}", key, entry, missing_remedy(entry));
  for (const std::string& match : glob_matches(entry, key))
    if (!fs::is_directory(match, error))
      add_entry(match, key, config, found);
    else if (is_run_folder(match))
      found.run_folders.push_back(match);
    else
      add_folder(match, key, config, found);
}

/// Entries -> files, in order; folders sorted by name.
Found expand(const std::vector<std::string>& entries, const std::string& key,
             const DataConfig& config) {
  if (entries.empty()) throw Error("{}: no data given; name a file, folder or pattern", key);
  Found found;
  for (const std::string& entry : entries) add_entry(entry, key, config, found);
  if (found.files.empty())
    throw Error("{}: {} matches run folders only, which are no data; check the pattern", key,
                entries[0]);
  return found;
}

/// Refuses a file of data.format=auto without an llm.c header that is not meant to be read as
/// bytes.
void refuse_foreign(const std::string& path, std::string_view start) {
  const ForeignKind kind = recognise(start);
  if (!kind.name.empty())
    throw Error(
        "{}: is {}; {}, leave it out (data.extensions chooses a folder's files), or set "
        "data.format=bytes if its bytes are the data",
        path, kind.name, kind.remedy);
  if (has_suffix(path, ".bin"))
    throw Error(
        "{}: a .bin file without llm.c's header; set data.format=tokens_u16 or tokens_u32 if it "
        "holds token numbers, data.format=bytes if every byte is a token",
        path);
}

/// Checks an llm.c header of a file of `size` bytes; magic_width: width according to its first
/// number.
Format llmc_format(const std::string& path, const int32_t* header, int64_t size, int magic_width,
                   const DataConfig& config) {
  const Format format{magic_width, kHeaderBytes};
  if (config.format == (magic_width == 2 ? "tokens_u32" : "tokens_u16"))
    throw Error(
        "{}: its llm.c header says {}-byte tokens, data.format says {}; set data.format=auto", path,
        magic_width, config.format);
  const int32_t version = magic_width == 2 ? 1 : 7;
  if (header[1] != version)
    throw Error("{}: llm.c header of version {}; version {} is read; write the file anew", path,
                header[1], version);
  if (size < kHeaderBytes)
    throw Error("{}: {} bytes, shorter than llm.c's header of {}; it is truncated", path, size,
                kHeaderBytes);
  const int64_t promised = kHeaderBytes + int64_t{header[2]} * format.width;
  if (header[2] < 0)
    throw Error("{}: its header promises {} tokens; it is damaged", path, header[2]);
  if (size != promised)
    throw Error(
        "{}: its header promises {} tokens, which makes {} bytes in all, the file holds {}; "
        "it {}",
        path, header[2], promised, size,
        size < promised ? "is truncated" : "has bytes that do not belong to it");
  return format;
}

/// How to read a file under data.format.
Format detect(const std::string& path, const DataConfig& config) {
  const InputFile file(path);
  if (config.format == "bytes") return {};
  std::string start(static_cast<size_t>(std::min(file.size(), kKindBytes)), '\0');
  file.read(0, start.data(), static_cast<int64_t>(start.size()));
  int32_t header[3] = {};
  if (start.size() >= sizeof header) std::memcpy(header, start.data(), sizeof header);
  if (header[0] == kMagicU16 || header[0] == kMagicU32)
    return llmc_format(path, header, file.size(), header[0] == kMagicU16 ? 2 : 4, config);
  if (config.format == "auto") {
    refuse_foreign(path, start);
    return {};
  }
  const Format format{config.format == "tokens_u16" ? 2 : 4, 0};
  if (file.size() % format.width != 0)
    throw Error("{}: {} bytes is no whole number of {}-byte tokens; check data.format={}", path,
                file.size(), format.width, config.format);
  return format;
}

/// A file as it is, or its unpacked form.
std::string plain_file(const std::string& path, const DataConfig& config) {
  return has_suffix(path, ".gz") ? unpacked_file(path, config) : path;
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

int token_width(const std::vector<std::string>& entries, const std::string& key,
                const DataConfig& config) {
  return detect(plain_file(expand(entries, key, config).files[0], config), config).width;
}

Sources open_sources(const std::vector<std::string>& entries, const std::string& key,
                     const DataConfig& config) {
  clean_cache(config);
  Found found = expand(entries, key, config);
  std::vector<std::string>& files = found.files;
  for (std::string& file : files) file = plain_file(file, config);
  std::vector<Format> formats;
  for (const std::string& file : files) formats.push_back(detect(file, config));
  for (size_t i = 1; i < files.size(); ++i)
    if (formats[i].width != formats[0].width)
      throw Error("{}: {} holds {}-byte tokens, {} {}-byte ones; give files of one kind", key,
                  files[0], formats[0].width, files[i], formats[i].width);
  Sources sources;
  sources.source_files = static_cast<int64_t>(files.size());
  sources.left_out = found.left_out();
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
