// What attention_native.h refuses; the same in every build.
#include "kernels/attention/attention_native.h"

#include <fmt/format.h>

#include <vector>

#include "core/alignment.h"
#include "core/device_runtime.h"

namespace longnet::cuda {
namespace {

/// What both directions refuse; rows: their own tensors of [B, L, H, D].
std::string call_refusal(const Context& context, const TensorView& query,
                         std::span<const SegmentTask> segments, const AttentionOptions& options,
                         bool backward, std::vector<const TensorView*> rows) {
  const AttentionSize size{query.shape[0], query.shape[3], query.dtype};
  if (std::string reason = native_refusal(context, size); !reason.empty()) return reason;
  const int64_t wanted = backward ? native_backward_shared_bytes(size.head_dim)
                                  : native_forward_shared_bytes(size.head_dim);
  if (const int64_t most = device_runtime::shared_memory_per_block(); wanted > most)
    return fmt::format("D {} takes {} bytes of shared memory per block, this GPU has {}",
                       size.head_dim, wanted, most);
  if (options.first_visible.defined() || options.last_visible.defined())
    return "visibility limits (documents)";
  if (!(options.scale > 0)) return fmt::format("scale {} is not positive", options.scale);
  rows.push_back(&query);
  for (const SegmentTask& task : segments)
    for (const KeySource& source : task.keys) {
      if (source.key.dtype != DType::kBF16 || source.value.dtype != DType::kBF16)
        return "key or value is f32";
      rows.insert(rows.end(), {&source.key, &source.value});
      if (backward) rows.insert(rows.end(), {&source.grad_key, &source.grad_value});
    }
  for (const TensorView* view : rows)
    if (!rows_aligned_to(16, *view))
      return fmt::format("rows of {} not aligned to 16 bytes", view->describe());
  return "";
}

}  // namespace

std::string native_refusal(const Context& context, const AttentionSize& size) {
  if (context.device().type != DeviceType::kCUDA) return "not on a GPU";
  if (size.dtype != DType::kBF16) return "query, key and value are f32";
  for (const int64_t allowed : {64, 80, 96, 128})
    if (size.head_dim == allowed) return "";
  return fmt::format("D {} is not 64, 80, 96 or 128", size.head_dim);
}

std::string native_refusal(const Context& context, const AttentionForward& tensors,
                           const AttentionOptions& options) {
  return call_refusal(context, tensors.query, tensors.segments, options, false, {&tensors.out});
}

std::string native_refusal(const Context& context, const AttentionBackward& tensors,
                           const AttentionOptions& options) {
  return call_refusal(context, tensors.query, tensors.segments, options, true,
                      {&tensors.grad_query, &tensors.grad_out});
}

}  // namespace longnet::cuda
