// A gzip file unpacked as gzip(1) does it, but nothing that could be half of the data passes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace longnet {

/// Unpacks a file and calls `write` with every piece, in order. All members are joined, zero bytes
/// after the last are padding. Throws Error, with path, place and remedy: no gzip file, empty,
/// damaged (checksum, length), cut, or followed by anything but a member and padding; pieces may
/// have been written by then.
void unpack_gzip(const std::string& path,
                 const std::function<void(const void* data, int64_t bytes)>& write);

}  // namespace longnet
