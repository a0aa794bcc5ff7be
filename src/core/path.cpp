// See path.h.
#include "core/path.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "core/text.h"

namespace longnet {
namespace {

bool begins_name(char c) { return c == '_' || std::isalpha(static_cast<unsigned char>(c)); }
bool in_name(char c) { return c == '_' || std::isalnum(static_cast<unsigned char>(c)); }

std::string value_of(const std::string& name, std::string_view typed) {
  const char* value = std::getenv(name.c_str());
  if (value == nullptr || *value == 0)
    throw Error(
        "{}: the environment variable {} is not set; set it, or write $$ for a dollar sign in a "
        "name",
        in_quotes(typed), one_line(name));
  return value;
}

/// The variable that begins at typed[at] == '$'; moves `at` behind it. "$" where none does.
std::string variable(std::string_view typed, size_t& at) {
  const size_t begin = at + 1;
  if (begin < typed.size() && typed[begin] == '$') {
    at = begin + 1;
    return "$";
  }
  const bool braces = begin < typed.size() && typed[begin] == '{';
  const size_t first = begin + (braces ? 1 : 0);
  size_t end = first;
  if (end < typed.size() && begins_name(typed[end]))
    while (end < typed.size() && in_name(typed[end])) ++end;
  if (braces && (end == first || end == typed.size() || typed[end] != '}'))
    throw Error("{}: \"${{\" begins no ${{NAME}}; write $$ for a dollar sign in a name",
                in_quotes(typed));
  if (end == first) {
    at = begin;
    return "$";
  }
  at = end + (braces ? 1 : 0);
  return value_of(std::string(typed.substr(first, end - first)), typed);
}

struct File {
  int handle;
  ~File() {
    if (handle >= 0) ::close(handle);
  }
};

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

}  // namespace

std::string expand_path(std::string_view typed) {
  if (typed.find('\0') != std::string_view::npos)
    throw Error("{}: holds a zero byte, which no path can", in_quotes(typed));
  std::string path;
  size_t at = 0;
  if (!typed.empty() && typed[0] == '~') {
    if (typed.size() > 1 && typed[1] != '/')
      throw Error("{}: only your own \"~/\" is expanded; write the folder out, or ./{}",
                  in_quotes(typed), one_line(typed));
    path = value_of("HOME", typed);
    at = 1;
  }
  while (at < typed.size()) {
    if (typed[at] == '$')
      path += variable(typed, at);
    else
      path += typed[at++];
  }
  return path;
}

std::string unexpanded_path(std::string_view path) {
  std::string typed = !path.empty() && path[0] == '~' ? "./" : "";
  for (const char c : path) {
    typed += c;
    if (c == '$') typed += c;
  }
  return typed;
}

std::string read_small_file(const std::string& path, int64_t most_bytes, std::string_view what) {
  const std::string shown = path.empty() ? "\"\"" : one_line(path, 400);
  // O_NONBLOCK: opening a pipe would wait for its writer.
  const File file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.handle < 0) throw Error("{}: cannot be opened: {}", shown, std::strerror(errno));
  struct stat info {};
  if (::fstat(file.handle, &info) != 0)
    throw Error("{}: cannot be read: {}", shown, std::strerror(errno));
  if (!S_ISREG(info.st_mode))
    throw Error("{}: is {}; {} is a regular file", shown, kind_of(info.st_mode), what);
  const auto refuse_longer = [&](int64_t bytes) {
    if (bytes > most_bytes)
      throw Error("{}: is longer than {} bytes; {} may have that many", shown, most_bytes, what);
  };
  refuse_longer(info.st_size);
  std::string text;
  std::string block(1 << 16, '\0');
  for (;;) {
    const ssize_t bytes = ::read(file.handle, block.data(), block.size());
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes < 0) throw Error("{}: cannot be read: {}", shown, std::strerror(errno));
    if (bytes == 0) return text;
    text.append(block, 0, static_cast<size_t>(bytes));
    refuse_longer(static_cast<int64_t>(text.size()));
  }
}

}  // namespace longnet
