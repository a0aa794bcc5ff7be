// The two paths that a build gives to its tests: LN_SOURCE_DIR and LN_BINARY_DIR.
#include "support/source_folder.h"

#include <cstdlib>

namespace longnet::test {

std::string source_folder() {
  const char* const given = std::getenv("LN_SOURCE_DIR");
  return given != nullptr && *given != '\0' ? given : LN_SOURCE_DIR;
}

std::string binary_folder() { return LN_BINARY_DIR; }

}  // namespace longnet::test
