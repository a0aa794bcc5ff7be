// One exception type and the checks that throw it.
//
// Every failure throws longnet::Error with one line of text: what, where, allowed values, nearest
// remedy. Only the program's main() catches it. The library never exits or prints.
#pragma once

#if defined(__CUDACC__) && !defined(FMT_USE_CONSTEXPR)
#define FMT_USE_CONSTEXPR 1  // fmt 9 thinks that nvcc has no constexpr, then needs it
#endif
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace longnet {

/// Every failure of the library. what() is one line meant for the user.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}
  /// fmt-style message: throw Error("{}: no such file", path).
  template <typename First, typename... Rest>
  Error(fmt::format_string<First, Rest...> format, First&& first, Rest&&... rest)
      : std::runtime_error(
            fmt::format(format, std::forward<First>(first), std::forward<Rest>(rest)...)) {}
};

namespace internal {
[[noreturn]] void check_failed(const char* condition, const char* file, int line,
                               const std::string& message);
}  // namespace internal

}  // namespace longnet

/// Precondition of the code (not of user input): throws Error with the condition, the place and the
/// values. Always on. LN_CHECK(rows > 0, "rows is {}", rows).
#define LN_CHECK(condition, ...)                                        \
  do {                                                                  \
    if (!(condition)) [[unlikely]]                                      \
      ::longnet::internal::check_failed(#condition, __FILE__, __LINE__, \
                                        ::fmt::format(__VA_ARGS__));    \
  } while (false)
