// Words for messages: values shown safely on one line, the nearest of several words, joined lists.
//
// Used where an Error speaks about something a user typed or a file holds. No parsing here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace longnet {

/// Control characters and bytes that are not UTF-8 as \n, \t, \x1b; cut after `limit` bytes with
/// "...". Never holds a newline.
std::string one_line(std::string_view text, size_t limit = 120);
/// one_line() in double quotes.
std::string in_quotes(std::string_view text, size_t limit = 60);
/// Insertions, deletions, changes and swaps of neighbours that turn a into b; letter case is free.
int64_t edit_distance(std::string_view a, std::string_view b);
/// Place of the first byte that is not part of UTF-8 text; nothing if all of it is.
std::optional<size_t> not_utf8(std::string_view text);
/// The candidate with the least edit_distance (the first of equals); empty if none is near enough
/// to be meant: at most a third of the longer word, but always at least two letters.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);
/// "a, b, c"
std::string joined(const std::vector<std::string>& words, std::string_view separator = ", ");

}  // namespace longnet
