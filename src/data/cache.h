// data.cache: unpacked .gz files and joined byte files, made once. A file of the cache is trusted
// only with its manifest FILE.json, which holds its size and hash; one that was cut or changed is
// made anew.
#pragma once

#include <string>
#include <vector>

#include "core/config.h"

namespace longnet {

/// The unpacked form of a .gz file. All members are joined, zero bytes after the last are padding,
/// anything else after it is refused, as half of the data may be missing there. Throws Error.
std::string unpacked_file(const std::string& path, const DataConfig& config);

/// Byte files one after another with config.separator between them. Throws Error.
std::string joined_file(const std::vector<std::string>& files, const DataConfig& config);

/// Removes what killed processes left in the cache (core/output_file.h).
void clean_cache(const DataConfig& config);

}  // namespace longnet
