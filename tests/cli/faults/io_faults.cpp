// LD_PRELOAD library that makes system calls on files fail, for io_fault_test.sh.
//   LN_FAULT_PATH   calls on paths that hold this text are counted
//   LN_FAULT_CALL   open | write | fsync | rename | read | mkdir | unlink
//   LN_FAULT_AT     the first call that fails, from 1
//   LN_FAULT_COUNT  how many fail from there on; 0: all
//   LN_FAULT_ERRNO  number of the error
// With LN_FAULT_REPORT a line "CALL PATH" is appended to that file for every failure.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>

namespace {

std::atomic<long> calls{0};

const char* setting(const char* name) {
  const char* text = getenv(name);
  return text != nullptr ? text : "";
}

template <typename Function>
Function real(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

void report(const char* call, const char* path) {
  const char* file = setting("LN_FAULT_REPORT");
  if (*file == 0) return;
  const int fd =
      real<int (*)(const char*, int, ...)>("open")(file, O_WRONLY | O_APPEND | O_CREAT, 0644);
  if (fd < 0) return;
  char line[4200];
  const int bytes = snprintf(line, sizeof line, "%s %s\n", call, path);
  if (real<ssize_t (*)(int, const void*, size_t)>("write")(fd, line, size_t(bytes)) < 0) return;
  real<int (*)(int)>("close")(fd);
}

/// True, with errno set, if this call is to fail.
bool fails(const char* call, const char* path) {
  const char* wanted = setting("LN_FAULT_PATH");
  if (*wanted == 0 || strcmp(setting("LN_FAULT_CALL"), call) != 0) return false;
  if (path == nullptr || strstr(path, wanted) == nullptr) return false;
  const long number = ++calls, first = atol(setting("LN_FAULT_AT"));
  const long count = atol(setting("LN_FAULT_COUNT"));
  if (number < first || (count > 0 && number >= first + count)) return false;
  report(call, path);
  errno = atoi(setting("LN_FAULT_ERRNO"));
  return true;
}

bool fails(const char* call, int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t bytes = readlink(link, path, sizeof path - 1);
  if (bytes < 0) return false;
  path[bytes] = 0;
  return fails(call, path);
}

mode_t mode_of(int flags, va_list list) {
  return (flags & O_CREAT) != 0 ? va_arg(list, mode_t) : 0;
}

}  // namespace

#define LN_OPEN(name)                                                      \
  int name(const char* path, int flags, ...) {                             \
    va_list list;                                                          \
    va_start(list, flags);                                                 \
    const mode_t mode = mode_of(flags, list);                              \
    va_end(list);                                                          \
    if (fails("open", path)) return -1;                                    \
    return real<int (*)(const char*, int, ...)>(#name)(path, flags, mode); \
  }
#define LN_CALL(type, call, name, parameters, arguments, what) \
  type name parameters {                                       \
    if (fails(call, what)) return -1;                          \
    return real<type(*) parameters>(#name) arguments;          \
  }

extern "C" {
LN_OPEN(open)
LN_OPEN(open64)
LN_CALL(ssize_t, "write", write, (int fd, const void* data, size_t n), (fd, data, n), fd)
LN_CALL(int, "fsync", fsync, (int fd), (fd), fd)
LN_CALL(int, "rename", rename, (const char* from, const char* to), (from, to), from)
LN_CALL(ssize_t, "read", read, (int fd, void* to, size_t n), (fd, to, n), fd)
LN_CALL(ssize_t, "read", pread, (int fd, void* to, size_t n, off_t at), (fd, to, n, at), fd)
LN_CALL(ssize_t, "read", pread64, (int fd, void* to, size_t n, off64_t at), (fd, to, n, at), fd)
LN_CALL(int, "mkdir", mkdir, (const char* path, mode_t mode), (path, mode), path)
LN_CALL(int, "unlink", unlink, (const char* path), (path), path)
LN_CALL(int, "unlink", unlinkat, (int fd, const char* path, int flags), (fd, path, flags), fd)
}
