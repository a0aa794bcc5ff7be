#include "core/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

namespace longnet {

std::string one_line(std::string_view text, size_t limit) {
  std::string line;
  for (size_t i = 0; i < text.size(); ++i) {
    if (i == limit) {
      // Do not cut a UTF-8 character in two.
      while (i < text.size() && (static_cast<unsigned char>(text[i]) & 0xC0) == 0x80)
        line += text[i++];
      if (i < text.size()) line += "...";
      break;
    }
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (c == '\n') {
      line += "\\n";
    } else if (c == '\t') {
      line += "\\t";
    } else if (c < 0x20 || c == 0x7F) {
      line += fmt::format("\\x{:02x}", c);
    } else {
      line += text[i];
    }
  }
  return line;
}

std::string in_quotes(std::string_view text, size_t limit) {
  return '"' + one_line(text, limit) + '"';
}

int64_t edit_distance(std::string_view a, std::string_view b) {
  a = a.substr(0, 200);  // a hostile word costs no time
  b = b.substr(0, 200);
  const auto same = [](char x, char y) {
    return std::tolower(static_cast<unsigned char>(x)) ==
           std::tolower(static_cast<unsigned char>(y));
  };
  // Rows i - 2, i - 1 and i of the optimal string alignment table.
  std::vector<int64_t> before(b.size() + 1), last(b.size() + 1), now(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = static_cast<int64_t>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    now[0] = static_cast<int64_t>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      now[j] =
          std::min({last[j] + 1, now[j - 1] + 1, last[j - 1] + (same(a[i - 1], b[j - 1]) ? 0 : 1)});
      if (i > 1 && j > 1 && same(a[i - 1], b[j - 2]) && same(a[i - 2], b[j - 1]))
        now[j] = std::min(now[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, now);
  }
  return last[b.size()];
}

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  int64_t best_distance = 0;
  for (const std::string& candidate : candidates) {
    const int64_t distance = edit_distance(word, candidate);
    const int64_t allowed =
        std::max<int64_t>(2, static_cast<int64_t>(std::max(word.size(), candidate.size())) / 3);
    if (distance > allowed) continue;
    if (best.empty() || distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string joined(const std::vector<std::string>& words, std::string_view separator) {
  return fmt::format("{}", fmt::join(words, separator));
}

}  // namespace longnet
