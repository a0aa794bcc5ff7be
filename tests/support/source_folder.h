// Where the tree's files (tests/golden, configs) are: the folder that the tests were built from, or
// that of the environment variable LN_SOURCE_DIR (a bundle on another machine).
#pragma once

#include <cstdlib>
#include <string>

namespace longnet::test {

inline std::string source_folder() {
  const char* const given = std::getenv("LN_SOURCE_DIR");
  return given != nullptr && *given != '\0' ? given : LN_SOURCE_DIR;
}

}  // namespace longnet::test
