// The message for an exception of any type: one line for the user, in the program's own words.
//
// longnet::Error carries its line. The standard library's texts ("std::bad_alloc", "filesystem
// error: ...") give neither the request, nor the limit, nor a remedy; this file supplies them.
#pragma once

#include <cstdint>
#include <exception>
#include <string>

namespace longnet {

/// The line for the user.
std::string failure_text(const std::exception& error);

/// Memory limit and use of the process, as the end of a message: "; ulimit -v allows 600000000
/// bytes, 590000000 are in use", or the machine's total and free memory. Empty if unknown.
std::string memory_limit_text();

/// Remembers, per thread, how many bytes the last failed `new` requested, for failure_text().
void note_failed_allocation(int64_t bytes) noexcept;

}  // namespace longnet
