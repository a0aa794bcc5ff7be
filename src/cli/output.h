// Standard output, checked: a full disk or a closed descriptor behind it is an error, not a success
// without a result. Every command writes its results here; logs go to standard error.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string_view>

namespace longnet {

/// Descriptors 0 to 2 that the caller closed are taken up, or the first file that is opened would
/// get the program's output. Writing to a closed standard output still fails. First thing in main.
void keep_standard_streams();
/// Adds text to standard output. Throws Error with the cause.
void write_output(std::string_view text);
/// A JSON value and a newline; bytes that are not UTF-8 (of a path) as U+FFFD. indent: -1: one
/// line.
void write_json(const nlohmann::ordered_json& json, int indent = 2);
/// Hands over what write_output holds back. Throws Error with the cause.
void flush_output();

}  // namespace longnet
