#include "core/arena.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace longnet {
namespace {

/// Dilated rows lie a page or more apart: with 4 KiB pages each costs a walk of the page table.
constexpr int64_t kHugePage = int64_t{2} << 20;

/// Aligned memory, a multiple of kAlignment long; in huge pages where it is large and Linux grants them.
void* allocate_block(int64_t bytes) {
  if (bytes < 2 * kHugePage)
    return std::aligned_alloc(kAlignment, static_cast<size_t>(bytes));
  const int64_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* block = std::aligned_alloc(kHugePage, static_cast<size_t>(whole));
#if defined(__linux__)
  if (block != nullptr) madvise(block, static_cast<size_t>(whole), MADV_HUGEPAGE);  // a wish only
#endif
  return block;
}

}  // namespace

Arena::Arena(std::string purpose, bool counting, Device device)
    : purpose_(std::move(purpose)), counting_(counting), device_(device) {}

Arena::~Arena() {
  for (void* block : blocks_) std::free(block);
}

void* Arena::allocate_bytes(int64_t bytes) {
  LN_CHECK(bytes >= 0, "arena {}: {} bytes", purpose_, bytes);
  // An empty tensor still gets an address: null means "not given".
  const int64_t padded = (std::max<int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  void* block = nullptr;
  if (counting_) {
    block = reinterpret_cast<void*>(static_cast<uintptr_t>(kAlignment + bytes_));
  } else {
    block = allocate_block(padded);
    if (block == nullptr)
      throw Error(
          "out of memory: {} bytes wanted for {}, which holds {} bytes; use more ranks, a shorter "
          "train.sequence_length or a smaller train.batch_size",
          padded, purpose_, bytes_);
    blocks_.push_back(block);
  }
  bytes_ += padded;
  return block;
}

TensorView Arena::allocate(DType dtype, std::initializer_list<int64_t> shape) {
  TensorView view(nullptr, dtype, shape, device_);
  view.data = allocate_bytes(view.bytes());
  return view;
}

TensorView Arena::allocate_zeroed(DType dtype, std::initializer_list<int64_t> shape) {
  TensorView view = allocate(dtype, shape);
  if (!counting_) std::memset(view.data, 0, static_cast<size_t>(view.bytes()));
  return view;
}

}  // namespace longnet
