// What is said about an exception of any kind: one line for the user, in the program's words.
//
// longnet::Error carries its line. The standard library's own texts ("std::bad_alloc", "filesystem
// error: ...") do not say what was wanted, what the limit is and what helps; these are made here.
#pragma once

#include <cstdint>
#include <exception>
#include <string>

namespace longnet {

/// The line for the user.
std::string failure_text(const std::exception& error);

/// What the process may have and has, as an end of a message: "; ulimit -v allows 600000000 bytes,
/// 590000000 are in use", or what the machine has and has free. Empty if it cannot be found out.
std::string memory_limit_text();

/// Remembers, per thread, how many bytes the last failed `new` wanted, for failure_text().
void note_failed_allocation(int64_t bytes) noexcept;

}  // namespace longnet
