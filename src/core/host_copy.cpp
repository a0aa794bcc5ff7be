// See host_copy.h.
#include "core/host_copy.h"

#include <algorithm>
#include <cstring>

#include "core/upload_ring.h"

namespace longnet {
namespace {

/// Two page-locked pieces: one is filled by the GPU while the host empties the other.
struct Staging {
  static constexpr int64_t kPieceBytes = int64_t{4} << 20;

  Staging() {
    for (char*& piece : pieces) {
      piece = static_cast<char*>(device_runtime::allocate_host(kPieceBytes));
      if (piece == nullptr)
        throw Error("no {} bytes of page-locked host memory for copies from the GPU", kPieceBytes);
    }
    for (auto& event : arrived) event.reset(device_runtime::make_event());
  }
  ~Staging() {
    for (char* piece : pieces) device_runtime::free_host(piece);
  }
  char* pieces[2] = {};
  device_runtime::OwnedEvent arrived[2];
};

void check(const Context& context, const TensorView& tensor) {
  LN_CHECK(tensor.contiguous(), "copy of the strided {}", tensor.describe());
  check_on_device(context, tensor, "tensor");
}

}  // namespace

void copy_to_host(Context& context, void* to, const TensorView& from) {
  check(context, from);
  const int64_t bytes = from.bytes();
  if (context.counting() || bytes == 0) return;
  if (!context.on_gpu()) {
    std::memcpy(to, from.data, static_cast<size_t>(bytes));
    return;
  }
  Staging& staging = context.kept<Staging>();
  const int64_t pieces = (bytes + Staging::kPieceBytes - 1) / Staging::kPieceBytes;
  const auto size_of = [&](int64_t piece) {
    return std::min(Staging::kPieceBytes, bytes - piece * Staging::kPieceBytes);
  };
  const auto start = [&](int64_t piece) {
    if (piece >= pieces) return;
    device_runtime::copy_to_host(staging.pieces[piece % 2],
                                 static_cast<char*>(from.data) + piece * Staging::kPieceBytes,
                                 size_of(piece), context.stream());
    device_runtime::record(staging.arrived[piece % 2].get(), context.stream());
  };
  start(0);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    start(piece + 1);  // into the place that the piece before has left
    device_runtime::wait(staging.arrived[piece % 2].get());
    std::memcpy(static_cast<char*>(to) + piece * Staging::kPieceBytes, staging.pieces[piece % 2],
                static_cast<size_t>(size_of(piece)));
  }
}

void copy_from_host(Context& context, const TensorView& to, const void* from) {
  check(context, to);
  if (context.counting() || to.bytes() == 0) return;
  if (context.on_gpu()) return upload(context, to.data, from, to.bytes());
  std::memcpy(to.data, from, static_cast<size_t>(to.bytes()));
}

void copy(Context& context, const TensorView& to, const TensorView& from) {
  check(context, to);
  check(context, from);
  LN_CHECK(to.dtype == from.dtype && to.elements() == from.elements(), "copy of {} to {}",
           from.describe(), to.describe());
  if (context.counting() || to.bytes() == 0) return;
  if (context.on_gpu())
    return device_runtime::copy_on_device(to.data, from.data, to.bytes(), context.stream());
  std::memmove(to.data, from.data, static_cast<size_t>(to.bytes()));
}

}  // namespace longnet
