// Where the tree's files (tests/golden, configs) and the build's programs are. Only
// source_folder.cpp is compiled with these paths, so that a compiler cache serves every clone of
// the tree.
#pragma once

#include <string>

namespace longnet::test {

/// The folder that the tests were built from, or that of the environment variable LN_SOURCE_DIR (a
/// bundle on another machine). Without a slash at the end.
std::string source_folder();

/// The folder of the build, where the program `longnet` is.
std::string binary_folder();

}  // namespace longnet::test
