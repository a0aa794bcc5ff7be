// YAML text and "section.key=value" words -> Config. Every message begins with the place: file:line
// of the key, or the word. Numbers are decimal; an integer may be written 1e6 if it is whole;
// suffixes (32K), underscores and hexadecimal are refused. Values of words are taken literally,
// without YAML quotes. Paths are expanded here (path.h), so a Config holds final paths.
#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <set>
#include <sstream>

#include "core/config_keys.h"
#include "core/input_file.h"
#include "core/path.h"
#include "core/text.h"

namespace longnet {
namespace internal {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{1} << 20;  // configs/base.yaml has some 8000
constexpr double kExact = 9007199254740992.0;        // 2^53: whole doubles below it are exact

/// Why a value cannot be read; the caller knows the place.
struct BadValue {
  std::string text;
};

int64_t parse_integer(const std::string& text, const std::string& allowed) {
  const char* end = text.data() + text.size();
  int64_t integer = 0;
  const auto whole = std::from_chars(text.data(), end, integer);
  if (whole.ec == std::errc() && whole.ptr == end) return integer;
  if (whole.ec == std::errc::result_out_of_range && whole.ptr == end)
    throw BadValue{fmt::format("{} is out of range; allowed: {}", in_quotes(text), allowed)};
  double number = 0;
  const auto real = std::from_chars(text.data(), end, number);
  if (real.ec == std::errc() && real.ptr == end && number == std::floor(number) &&
      std::abs(number) <= kExact)
    return static_cast<int64_t>(number);
  std::string remedy;
  if (whole.ec == std::errc() && whole.ptr == end - 1 && integer > 0 && integer < (1 << 20)) {
    if (*whole.ptr == 'k' || *whole.ptr == 'K') remedy = fmt::format("; write {}", integer << 10);
    if (*whole.ptr == 'M') remedy = fmt::format("; write {}", integer << 20);
  }
  throw BadValue{
      fmt::format("{} is not an integer{}; allowed: {}", in_quotes(text), remedy, allowed)};
}

double parse_number(const std::string& text, const std::string& allowed) {
  const char* end = text.data() + text.size();
  double number = 0;
  const auto real = std::from_chars(text.data(), end, number);
  // from_chars also reads "inf" and "nan", which no key may be.
  if (real.ec != std::errc() || real.ptr != end || !std::isfinite(number))
    throw BadValue{fmt::format("{} is not a number; allowed: {}", in_quotes(text), allowed)};
  return number;
}

bool parse_bool(const std::string& text) {
  if (text == "true") return true;
  if (text == "false") return false;
  throw BadValue{fmt::format("{} is neither true nor false", in_quotes(text))};
}

const char* kind_of(const YAML::Node& node) {
  if (!node.IsDefined() || node.IsNull()) return "empty";
  if (node.IsMap()) return "a section";
  if (node.IsSequence()) return "a list";
  return "a single value";
}

/// Sets a key from the text of a whole value.
void set_scalar(const Key& key, const Slot& slot, const std::string& text) {
  if (const auto* v = std::get_if<int64_t*>(&slot)) {
    **v = parse_integer(text, key.allowed());
  } else if (const auto* v = std::get_if<double*>(&slot)) {
    **v = parse_number(text, key.allowed());
  } else if (const auto* v = std::get_if<bool*>(&slot)) {
    **v = parse_bool(text);
  } else if (const auto* v = std::get_if<std::string*>(&slot)) {
    **v = key.path ? expand_path(text) : text;
  } else if (const auto* v = std::get_if<std::vector<std::string>*>(&slot)) {
    (*v)->clear();
    if (!text.empty()) (*v)->push_back(key.path ? expand_path(text) : text);
  } else {
    throw BadValue{
        fmt::format("{} is not a list of pairs; allowed: {}", in_quotes(text), key.allowed())};
  }
}

std::vector<Branch> read_branches(const YAML::Node& node, const std::string& allowed) {
  std::vector<Branch> branches;
  for (const YAML::Node& pair : node) {
    if (!pair.IsSequence() || pair.size() != 2 || !pair[0].IsScalar() || !pair[1].IsScalar())
      throw BadValue{fmt::format("entry {} is not a pair [segment length, dilation]; allowed: {}",
                                 branches.size() + 1, allowed)};
    branches.push_back(
        {parse_integer(pair[0].Scalar(), allowed), parse_integer(pair[1].Scalar(), allowed)});
  }
  return branches;
}

void set_node(const Key& key, const Slot& slot, const YAML::Node& node) {
  if (node.IsScalar()) return set_scalar(key, slot, node.Scalar());
  if (node.IsSequence()) {
    if (const auto* v = std::get_if<std::vector<Branch>*>(&slot)) {
      **v = read_branches(node, key.allowed());
      return;
    }
    if (const auto* v = std::get_if<std::vector<std::string>*>(&slot)) {
      (*v)->clear();
      for (const YAML::Node& item : node) {
        if (!item.IsScalar())
          throw BadValue{
              fmt::format("entry {} is {}, not a text", (*v)->size() + 1, kind_of(item))};
        (*v)->push_back(key.path ? expand_path(item.Scalar()) : item.Scalar());
      }
      return;
    }
  }
  throw BadValue{fmt::format("the value is {}, not {} {}; allowed: {}", kind_of(node),
                             key.type()[0] == 'i' ? "an" : "a", key.type(), key.allowed())};
}

/// "; did you mean model.layers?" for a name that is no key.
std::string suggestion(const std::string& name) {
  std::string best;
  int64_t best_distance = 0;
  const std::string section = name.substr(0, name.find('.'));
  const std::string word = name.substr(name.rfind('.') + 1);
  for (const Key& key : keys()) {
    // A right word in a wrong section counts as one mistake, a like word there as one more.
    const int64_t elsewhere = edit_distance(word, key.word()) + (section == key.section() ? 0 : 1);
    const int64_t distance = std::min(edit_distance(name, key.name), elsewhere);
    const int64_t longest = static_cast<int64_t>(std::max(word.size(), key.word().size()));
    if (distance > std::max<int64_t>(2, longest / 3)) continue;
    if (best.empty() || distance < best_distance) {
      best = key.name;
      best_distance = distance;
    }
  }
  return best.empty() ? "; configs/base.yaml lists every key"
                      : fmt::format("; did you mean {}?", best);
}

std::string unknown_key(const std::string& name) {
  if (const auto reason = refusal(name)) return *reason;
  return "unknown key" + suggestion(name);
}

/// A Config being filled, and where each key was last set.
class Parser {
 public:
  explicit Parser(const Config& start) : config_(start) {}

  void read_yaml(const std::string& text, const std::string& name);
  void read_word(const std::string& word);
  /// Checks the rules between keys and hands the result over.
  Config finish();

 private:
  /// place: "configs/x.yaml:12" or "key=value word \"...\"". prefix: what the message begins with.
  template <typename Set>
  void set(const Key& key, const std::string& place, const std::string& prefix, Set set_value) {
    try {
      set_value(key.slot(config_));
    } catch (const BadValue& bad) {
      throw Error("{}: {}", prefix, bad.text);
    } catch (const Error& bad) {  // of expand_path
      throw Error("{}: {}", prefix, bad.what());
    }
    if (const auto problem = value_problem(key, config_)) throw Error("{}: {}", prefix, *problem);
    places_[key.name] = place;
  }
  void read_section(const std::string& section, const YAML::Node& node, const std::string& name);

  Config config_;
  std::map<std::string, std::string> places_;
};

std::string place_of(const std::string& name, const YAML::Mark& mark) {
  return mark.line < 0 ? name : fmt::format("{}:{}", name, mark.line + 1);
}

/// Bytes that no text file holds: yaml-cpp would stop reading at some of them without a word, and
/// put others in the place of what is not UTF-8.
void check_text(const std::string& text, const std::string& name) {
  int64_t line = 1;
  if (const auto place = not_utf8(text)) {
    line += std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(*place), '\n');
    throw Error("{}:{}: the byte 0x{:02x} is not UTF-8; save the file as UTF-8", name, line,
                static_cast<unsigned char>(text[*place]));
  }
  for (const char c : text) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (c == '\n') ++line;
    if (byte < 0x20 && c != '\n' && c != '\t' && c != '\r')
      throw Error("{}:{}: holds the byte 0x{:02x}; a configuration is a text file", name, line,
                  byte);
  }
}

/// The first line, from 1, whose indentation holds a tab, up to `last`; 0 if there is none. Tabs
/// are an error only where yaml-cpp stumbles over them: lists in brackets may be indented so.
int64_t tab_indented_line(const std::string& text, int64_t last) {
  size_t begin = 0;
  for (int64_t line = 1; line <= last && begin < text.size(); ++line) {
    const size_t word = std::min(text.find_first_not_of(" \t", begin), text.size());
    if (std::count(text.begin() + static_cast<std::ptrdiff_t>(begin),
                   text.begin() + static_cast<std::ptrdiff_t>(word), '\t') > 0)
      return line;
    begin = std::min(text.find('\n', begin), text.size() - 1) + 1;
  }
  return 0;
}

/// Counts documents; nothing else is kept.
class DocumentCounter final : public YAML::EventHandler {
 public:
  void OnDocumentStart(const YAML::Mark& mark) override { last = mark; }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t,
                const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}
  YAML::Mark last;  // where the last document began
};

/// YAML::Load reads one document and drops the rest without a word; YAML::LoadAll (0.7) never
/// returns for a stray bracket, which gives it empty documents for ever.
void check_one_document(const std::string& text, const std::string& name) {
  std::istringstream stream(text);
  YAML::Parser parser(stream);
  DocumentCounter counter;
  for (int document = 0; document < 2; ++document) {
    if (!parser.HandleNextDocument(counter)) return;
    if (document == 1)
      throw Error(
          "{}: the one YAML document of a configuration ends before this line; remove what "
          "follows, such as '---' or a stray bracket",
          place_of(name, counter.last));
  }
}

void Parser::read_section(const std::string& section, const YAML::Node& node,
                          const std::string& name) {
  std::set<std::string> seen;
  for (const auto& item : node) {
    const std::string place = place_of(name, item.first.Mark());
    if (!item.first.IsScalar())
      throw Error("{}: {}: a key is {}, not a word", place, section, kind_of(item.first));
    const std::string full = section + "." + item.first.Scalar();
    const std::string prefix = fmt::format("{}: {}", place, one_line(full));
    const Key* key = find_key(full);
    if (key == nullptr) throw Error("{}: {}", prefix, unknown_key(full));
    if (!seen.insert(full).second)
      throw Error("{}: appears twice, first at {}; remove one", prefix, places_[full]);
    if (item.second.IsNull()) throw Error("{}: has no value; allowed: {}", prefix, key->allowed());
    set(*key, place, prefix, [&](const Slot& slot) { set_node(*key, slot, item.second); });
  }
}

void Parser::read_yaml(const std::string& text, const std::string& name) {
  check_text(text, name);
  try {
    check_one_document(text, name);
    const YAML::Node root = YAML::Load(text);
    if (!root.IsDefined() || root.IsNull()) return;
    if (!root.IsMap())
      throw Error("{}: is {}, not sections; allowed: {}", place_of(name, root.Mark()),
                  kind_of(root), joined(section_names()));
    const std::vector<std::string> sections = section_names();
    std::map<std::string, std::string> seen;
    for (const auto& item : root) {
      const std::string place = place_of(name, item.first.Mark());
      if (!item.first.IsScalar())
        throw Error("{}: a section's name is {}, not a word", place, kind_of(item.first));
      const std::string section = item.first.Scalar();
      const std::string prefix = fmt::format("{}: {}", place, one_line(section));
      if (std::find(sections.begin(), sections.end(), section) == sections.end()) {
        if (find_key(section) != nullptr)
          throw Error("{}: a file holds sections; write {}: {{{}: ...}}", prefix,
                      find_key(section)->section(), find_key(section)->word());
        if (const auto reason = refusal(section)) throw Error("{}: {}", prefix, *reason);
        const std::string near = nearest(section, sections);
        throw Error(
            "{}: unknown section; {}", prefix,
            near.empty() ? "allowed: " + joined(sections) : fmt::format("did you mean {}?", near));
      }
      if (!seen.emplace(section, place).second)
        throw Error("{}: appears twice, first at {}; merge the two", prefix, seen[section]);
      if (item.second.IsNull()) continue;  // "model:" with every line below it a comment
      if (!item.second.IsMap())
        throw Error("{}: is {}, not a section; write its keys below it", prefix,
                    kind_of(item.second));
      read_section(section, item.second, name);
    }
  } catch (const YAML::Exception& e) {
    if (const int64_t line = tab_indented_line(text, e.mark.line + 1))
      throw Error("{}:{}: not valid YAML: the line is indented with a tab; write spaces", name,
                  line);
    // This text of a file that was read is yaml-cpp's for values nested too deep.
    const bool deep = e.msg == YAML::ErrorMsg::BAD_FILE;
    throw Error(
        "{}: not valid YAML: {}", place_of(name, e.mark),
        deep ? "nested too deep; a section holds keys, a key a value or a list" : one_line(e.msg));
  }
}

void Parser::read_word(const std::string& word) {
  const std::string place = fmt::format("key=value word {}", in_quotes(word, 120));
  const size_t equals = word.find('=');
  if (equals == std::string::npos || equals == 0)
    throw Error("{}: is not a pair; write section.name=value, such as train.batch_size=2", place);
  const std::string name = word.substr(0, equals);
  const std::string value = word.substr(equals + 1);
  const Key* key = find_key(name);
  if (key == nullptr) throw Error("{}: {}", place, unknown_key(name));
  set(*key, place, place, [&](const Slot& slot) {
    const bool list = std::holds_alternative<std::vector<std::string>*>(slot) ||
                      std::holds_alternative<std::vector<Branch>*>(slot);
    if (!list || value.empty() || value[0] != '[') return set_scalar(*key, slot, value);
    try {
      check_text(value, place);
      set_node(*key, slot, YAML::Load(value));
    } catch (const YAML::Exception& e) {
      throw BadValue{
          fmt::format("the list cannot be read: {}; allowed: {}", one_line(e.msg), key->allowed())};
    }
  });
}

Config Parser::finish() {
  const auto problem = find_problem(config_);
  if (!problem) return config_;
  for (const std::string& key : problem->keys) {
    const auto place = places_.find(key);
    if (place != places_.end()) throw Error("{}: {}", place->second, problem->text);
  }
  throw Error(problem->text);
}

}  // namespace
}  // namespace internal

Config parse_config(const std::string& yaml_text, const std::string& name,
                    const std::vector<std::string>& overrides) {
  internal::Parser parser{Config{}};
  parser.read_yaml(yaml_text, name);
  for (const std::string& word : overrides) parser.read_word(word);
  return parser.finish();
}

Config load_config(const std::string& path, const std::vector<std::string>& overrides) {
  return parse_config(path.empty() ? "" : read_input_file(path, internal::kMaxFileBytes), path,
                      overrides);
}

void apply_overrides(Config& config, const std::vector<std::string>& overrides) {
  internal::Parser parser{config};
  for (const std::string& word : overrides) parser.read_word(word);
  config = parser.finish();
}

}  // namespace longnet
