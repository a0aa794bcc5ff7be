// Text for messages: values printed safely on one line, the nearest of several words, joined lists.
//
// Used where an Error quotes what a user typed or a file holds. Does no parsing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace longnet {

/// Escapes control characters and bytes that are not UTF-8 as \n, \t, \x1b; cuts after `limit`
/// bytes with "...". The result never contains a newline.
std::string one_line(std::string_view text, size_t limit = 120);
/// one_line() in double quotes.
std::string in_quotes(std::string_view text, size_t limit = 60);
/// Insertions, deletions, substitutions and swaps of neighbours that turn a into b; ignores case.
int64_t edit_distance(std::string_view a, std::string_view b);
/// Position of the first byte that is not valid UTF-8; nothing if all bytes are.
std::optional<size_t> not_utf8(std::string_view text);
/// The candidate with the least edit_distance (the first of equals); empty if none is near enough:
/// the distance may be at most a third of the longer word, but two is always allowed.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);
/// "a, b, c"
std::string joined(const std::vector<std::string>& words, std::string_view separator = ", ");

}  // namespace longnet
