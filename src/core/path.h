// Paths as people type them: "~" and environment variables become what they stand for.
//
// A shell expands them in a plain word, but not after the "=" of key=value, and no shell sees a
// YAML file: without this a run lands in a folder of the name "~". Used for every path among the
// configuration keys and for every path on the command line.
#pragma once

#include <string>
#include <string_view>

namespace longnet {

/// "~" or "~/..." with the home folder, $NAME and ${NAME} with the variable's value, "$$" with one
/// dollar sign; a "$" before anything else stands for itself. Throws Error where HOME or a variable
/// is not set, for another person's "~name", for an unclosed "${", and for a NUL byte.
std::string expand_path(std::string_view typed);

/// What expand_path() turns back into `path`. (A leading "~" becomes "./~", the same file.)
std::string unexpanded_path(std::string_view path);

}  // namespace longnet
