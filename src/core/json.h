// JSON text to values and back. nlohmann's parser and printer are compiled in json.cpp alone: in
// every file that calls them they cost a compiler seconds.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace longnet {

/// The value; is_discarded() if the text is not JSON.
nlohmann::json parse_json(std::string_view text);
/// Bytes that are not UTF-8 become U+FFFD. indent -1: one line.
std::string json_text(const nlohmann::json& value, int indent = -1);
std::string json_text(const nlohmann::ordered_json& value, int indent = -1);

}  // namespace longnet
