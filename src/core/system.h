// What the operating system says: why a call failed, this machine's name, this process's memory.
#pragma once

#include <cstdint>
#include <string>

namespace longnet {

/// Why the last system call of this thread failed: the text of errno.
std::string system_cause();
/// This machine's name, "unknown host" where it has none.
std::string host_name();
/// Resident memory of this process, bytes; 0: cannot be found out.
int64_t resident_bytes();
/// Address space of this process, bytes; 0: cannot be found out.
int64_t address_space_bytes();

/// Throws Error if `ulimit -n` allows fewer open files, `ulimit -v` fewer bytes of memory or
/// `ulimit -f` fewer bytes of a file.
void require_limits(int64_t open_files, int64_t address_space, int64_t file_size);

}  // namespace longnet
