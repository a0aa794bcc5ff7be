// Copies of whole tensors between a context's device and pageable host memory, and on the device.
//
// Tensors are contiguous; nothing is converted. On the CPU these are plain copies. To and from a
// GPU they go in pieces through page-locked memory kept with the Context (a few MiB, whatever the
// tensor's size), so that a large buffer never needs a second full copy.
#pragma once

#include "core/context.h"
#include "core/tensor.h"

namespace longnet {

/// to [from.bytes()] host memory. Waits for earlier work and for the copy.
void copy_to_host(Context& context, void* to, const TensorView& from);
/// Ordered on the context's stream; from [to.bytes()] host memory may be reused on return.
void copy_from_host(Context& context, const TensorView& to, const void* from);
/// Both on the context's device, of one size; ordered on its stream.
void copy(Context& context, const TensorView& to, const TensorView& from);

}  // namespace longnet
