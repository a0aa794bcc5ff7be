// operator new of the program: the standard one, but a failure records the size of the request. The
// other forms of the standard library ([], nothrow) call this one; delete is free().
#include <cstdlib>
#include <new>

#include "core/failure.h"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
void* operator new(std::size_t bytes) {
  void* block = std::malloc(bytes == 0 ? 1 : bytes);
  if (block == nullptr) {
    longnet::note_failed_allocation(static_cast<int64_t>(bytes));
    throw std::bad_alloc();
  }
  return block;
}

void operator delete(void* block) noexcept { std::free(block); }
void operator delete(void* block, std::size_t) noexcept { std::free(block); }
#endif
