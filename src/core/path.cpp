// See path.h.
#include "core/path.h"

#include <cctype>
#include <cstdlib>

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

}  // namespace longnet
