// Recognises what a file contains: text, token numbers, or something that is not training data as
// it is (an archive, a compressed file, a picture, a model, UTF-16). Reads the first bytes only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace longnet {

constexpr int64_t kKindBytes = 64 << 10;  // of a file's start that recognise() wants

/// A file that must not be read as text, and the remedy. Empty `name`: nothing of the kind.
struct ForeignKind {
  std::string name;    // "a zip archive"
  std::string remedy;  // "unpack it"
};
/// start: the first bytes of a file, up to kKindBytes. Recognises magic numbers, byte-order marks,
/// UTF-16 without a mark, and numbers of 2 or 4 bytes (only if the bytes leave no doubt).
ForeignKind recognise(std::string_view start);

/// True for a folder that a training made: a run's folder or a checkpoint, wherever it lies.
bool is_run_folder(const std::string& folder);

}  // namespace longnet
