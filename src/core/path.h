// Paths as people type them: expands "~" and environment variables.
//
// A shell expands them in a plain word, but not after the "=" of key=value, and not in a YAML file;
// without this, a run would land in a folder named "~". Applies to every path among the
// configuration keys and on the command line.
#pragma once

#include <string>
#include <string_view>

namespace longnet {

/// Replaces "~" and "~/..." by the home folder, $NAME and ${NAME} by the variable's value, and "$$"
/// by one dollar sign; a "$" before anything else stands for itself. Throws Error if HOME or a
/// variable is not set, for another user's "~name", for an unclosed "${", and for a NUL byte.
std::string expand_path(std::string_view typed);

/// Text that expand_path() turns back into `path`. (A leading "~" becomes "./~", the same file.)
std::string unexpanded_path(std::string_view path);

}  // namespace longnet
