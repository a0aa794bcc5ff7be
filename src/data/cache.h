// data.cache: unpacked .gz files and joined byte files, made once. A cache file is used only if it
// matches its manifest FILE.json (size and hash); one that was truncated or changed is rebuilt.
#pragma once

#include <string>
#include <vector>

#include "core/config.h"

namespace longnet {

/// Path of the unpacked form of a .gz file. All members are joined; zero bytes after the last
/// member are padding. Anything else after it is an Error, because half of the data may be missing
/// there. Throws Error.
std::string unpacked_file(const std::string& path, const DataConfig& config);

/// Concatenates byte files with config.separator between them; returns the path. Throws Error.
std::string joined_file(const std::vector<std::string>& files, const DataConfig& config);

/// Removes temporary files of killed processes from the cache (core/output_file.h).
void clean_cache(const DataConfig& config);

}  // namespace longnet
