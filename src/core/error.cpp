// See error.h.
#include "core/error.h"

#include <cstring>

namespace longnet::internal {

void check_failed(const char* condition, const char* file, int line, const std::string& message) {
  const char* tail = std::strstr(file, "src/");
  throw Error("internal error: {} ({} does not hold at {}:{}); please report it", message,
              condition, tail ? tail : file, line);
}

}  // namespace longnet::internal
