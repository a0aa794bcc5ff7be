// See arena.h.
#include "core/arena.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>

#include "core/alignment.h"
#include "core/byte_count.h"
#include "core/device_runtime.h"
#include "core/failure.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace longnet {
namespace {

/// Dilated rows lie a page or more apart: with 4 KiB pages each costs a walk of the page table.
constexpr int64_t kHugePage = int64_t{2} << 20;

/// Aligned memory, a multiple of kAlignment long; in huge pages where it is large and Linux grants
/// them.
void* allocate_block(int64_t bytes) {
  if (bytes < 2 * kHugePage) return std::aligned_alloc(kAlignment, static_cast<size_t>(bytes));
  const int64_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* block = std::aligned_alloc(kHugePage, static_cast<size_t>(whole));
#if defined(__linux__)
  if (block != nullptr) madvise(block, static_cast<size_t>(whole), MADV_HUGEPAGE);  // a wish only
#endif
  return block;
}

/// The arenas that hold real memory, for the message of the one that finds none.
struct Registry {
  std::mutex mutex;
  std::vector<const Arena*> arenas;  // in order of construction
};
Registry& registry() {
  static Registry* instance = new Registry;  // arenas may die after static objects
  return *instance;
}

}  // namespace

Arena::Arena(std::string purpose, bool counting, Device device)
    : purpose_(std::move(purpose)), counting_(counting), device_(device) {
  if (counting_) return;
  const std::lock_guard<std::mutex> lock(registry().mutex);
  registry().arenas.push_back(this);
}

Arena::~Arena() {
  for (void* block : blocks_) {
    if (device_.type == DeviceType::kCUDA) {
      device_runtime::free(block);
    } else {
      std::free(block);
    }
  }
  if (counting_) return;
  const std::lock_guard<std::mutex> lock(registry().mutex);
  std::erase(registry().arenas, this);
}

void* Arena::take_block(int64_t bytes) {
  const bool gpu = device_.type == DeviceType::kCUDA;
  void* block = gpu ? device_runtime::allocate(bytes) : allocate_block(bytes);
  if (block == nullptr) {
    std::string where = gpu ? "" : memory_limit_text();
    if (gpu) {
      const device_runtime::MemoryInfo memory = device_runtime::memory_info();
      where = fmt::format("; {} has {} of {} bytes free", device_name(device_), memory.free,
                          memory.total);
    }
    throw Error(
        "out of memory: {} bytes wanted for {}; held: {}{}; use more ranks, a shorter "
        "train.sequence_length or a smaller train.batch_size",
        bytes, purpose_, arena_table(), where);
  }
  blocks_.push_back(block);
  return block;
}

void Arena::reserve(int64_t bytes) {
  LN_CHECK(bytes >= 0, "arena {}: {} bytes", purpose_, bytes);
  if (counting_ || bytes == 0) return;
  const int64_t padded = aligned_bytes(bytes);
  reserved_ = static_cast<char*>(take_block(padded));
  reserved_bytes_ = padded;
}

void* Arena::allocate_bytes(int64_t bytes) {
  LN_CHECK(bytes >= 0, "arena {}: {} bytes", purpose_, bytes);
  // An empty tensor still gets an address, because null means "not set".
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() - 2 * kAlignment;
  if (bytes > kMost - bytes_) throw_beyond_64_bits(purpose_);
  const int64_t padded = aligned_bytes(std::max<int64_t>(bytes, 1));
  void* block = nullptr;
  if (counting_) {
    block = reinterpret_cast<void*>(static_cast<uintptr_t>(kAlignment + bytes_));
  } else if (padded <= reserved_bytes_) {
    block = reserved_;
    reserved_ += padded;
    reserved_bytes_ -= padded;
  } else {
    block = take_block(padded);
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
  if (counting_) return view;
  if (device_.type == DeviceType::kCUDA) {
    // The default stream is in order with no other, so it is waited for.
    device_runtime::fill_bytes(view.data, 0, view.bytes(), nullptr);
    device_runtime::wait(device_runtime::Stream{});
  } else {
    std::memset(view.data, 0, static_cast<size_t>(view.bytes()));
  }
  return view;
}

std::string arena_table() {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  std::string table;
  for (const Arena* arena : registry().arenas)
    if (arena->bytes() > 0)
      table +=
          fmt::format("{}{} {} bytes", table.empty() ? "" : ", ", arena->purpose(), arena->bytes());
  return table.empty() ? "nothing" : table;
}

}  // namespace longnet
