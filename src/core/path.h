// Paths as people type them: "~" and environment variables become what they stand for.
//
// A shell expands them in a plain word, but not after the "=" of key=value, and no shell sees a
// YAML file: without this a run lands in a folder of the name "~". Used for every path among the
// configuration keys and for every path on the command line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace longnet {

/// "~" or "~/..." with the home folder, $NAME and ${NAME} with the variable's value, "$$" with one
/// dollar sign; a "$" before anything else stands for itself. Throws Error where HOME or a variable
/// is not set, for another person's "~name", for an unclosed "${", and for a NUL byte.
std::string expand_path(std::string_view typed);

/// What expand_path() turns back into `path`. (A leading "~" becomes "./~", the same file.)
std::string unexpanded_path(std::string_view path);

/// The whole text of a small regular file. Throws Error with the path if it is missing, no regular
/// file (a pipe would wait for ever, a device never end) or longer than most_bytes; `what` names
/// the kind of file in that message, such as "a configuration".
std::string read_small_file(const std::string& path, int64_t most_bytes, std::string_view what);

}  // namespace longnet
