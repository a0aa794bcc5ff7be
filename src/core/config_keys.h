// The table of configuration keys: the only list of them, from which everything else is printed.
//
// config_keys.cpp holds and prints the table, config_parse.cpp fills a Config from YAML and
// key=value words, config_check.cpp holds the rules between keys. Only src/core/config*.cpp use
// this header.
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/config.h"

namespace longnet::internal {

/// Where a key's value lies in a Config; the alternative is the key's type.
using Slot = std::variant<int64_t*, double*, bool*, std::string*, std::vector<std::string>*,
                          std::vector<Branch>*>;

/// Allowed values of a number; both limits are allowed unless `above` or `below` is set.
struct Limits {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool above = false;  // low itself is excluded
  bool below = false;  // high itself is excluded
};

struct Key {
  std::string name;  // "section.name"
  Slot (*slot)(Config&);
  std::string unit;                  // "" where there is none
  Limits limits;                     // integers and numbers
  std::vector<std::string> choices;  // texts: the allowed words; empty: any text
  std::string help;                  // one sentence, begins small, no full stop
  bool path = false;                 // a path or a list of them: "~" and $NAME are expanded

  std::string section() const { return name.substr(0, name.find('.')); }
  std::string word() const { return name.substr(name.find('.') + 1); }
  std::string type() const;     // "integer", "number", "true | false", "text", "list of texts", ...
  std::string allowed() const;  // "1 to 1048576", "gelu, swiglu", "any text"
  /// The value as YAML that reads back to the same value.
  std::string print(const Config& config) const;
};

const std::vector<Key>& keys();
const Key* find_key(const std::string& name);  // null: no such key
std::vector<std::string> section_names();      // in the order of the table

/// What is wrong with one key's value by itself, without the key's name; nothing if it is valid.
std::optional<std::string> value_problem(const Key& key, const Config& config);

/// A violated rule between keys. text names every key involved; keys: those whose place may be
/// shown.
struct Problem {
  std::vector<std::string> keys;
  std::string text;
};
std::optional<Problem> find_problem(const Config& config);

/// For names known from other trainers (model.dropout, kv_heads, ...): "not offered", the reason
/// and the alternative. Nothing for any other unknown name.
std::optional<std::string> refusal(const std::string& name);

}  // namespace longnet::internal
