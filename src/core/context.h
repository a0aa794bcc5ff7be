// Context: where and how kernels run: device, threads, instruction set, progress and counters.
//
// A kernel call is ordered on the Context's stream and may return early; only wait() waits (on the
// CPU every call is finished when it returns). A counting Context runs nothing and needs no GPU:
// kernels add their FLOPs and return, which is how `longnet plan` measures a step without doing it.
#pragma once

#include <algorithm>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <typeindex>

#include "core/device_runtime.h"
#include "core/tensor.h"

namespace longnet {

/// Instruction sets a CPU kernel may be compiled for, in rising order.
enum class Isa { kGeneric, kAvx2, kAvx512 };
/// The best one of this machine; LONGNET_ISA=generic|avx2|avx512 lowers it (tests run each).
Isa detect_isa();
const char* isa_name(Isa isa);

/// Implementation of attention on a GPU (run.attention): kAuto takes, for each call, the first of
/// the three that supports it; the other values force one.
enum class AttentionChoice { kAuto, kCudnn, kNative, kPlain };
/// The choice of "auto", "cudnn", "native" or "plain"; throws Error for another word.
AttentionChoice attention_choice(const std::string& name);
const char* attention_choice_name(AttentionChoice choice);

/// Floating-point operations done so far (a multiply-add counts two). The share of the machine's
/// peak counts the first two only: recomputation is not progress.
struct Work {
  double matmul_flops = 0;      // linear layers and the output projection
  double attention_flops = 0;   // of pairs that the mask keeps: 4 D forward, 8 D backward each
  double recomputed_flops = 0;  // of both kinds, repeated by a backward that kept no activations

  /// Counts what was done since `before` as if it had been done `times` times.
  void repeat_since(const Work& before, int64_t times) {
    const auto repeat = [times](double& now, double then) {
      now = then + (now - then) * static_cast<double>(times);
    };
    repeat(matmul_flops, before.matmul_flops);
    repeat(attention_flops, before.attention_flops);
    repeat(recomputed_flops, before.recomputed_flops);
  }
};

struct ContextOptions {
  Device device;
  int threads = 0;  // 0: OpenMP's default
  bool counting = false;
};

class Context {
 public:
  /// With a GPU: makes it this thread's device and creates the stream. Throws Error if the GPU
  /// cannot be used (built without CUDA, no driver, no such device).
  explicit Context(const ContextOptions& options = {});

  Device device() const { return options_.device; }
  bool on_gpu() const { return options_.device.type == DeviceType::kCUDA; }
  int threads() const { return options_.threads; }
  bool counting() const { return options_.counting; }
  Isa isa() const { return isa_; }
  void set_isa(Isa isa) { isa_ = isa; }

  /// Long kernels call this between pieces of work, only on the thread that called the kernel,
  /// because MPI moves no data by itself. The callback must neither throw nor start kernels.
  void progress() const {
    if (progress_) progress_();
  }
  void set_progress(std::function<void()> progress) { progress_ = std::move(progress); }
  /// Call it between pieces of work of a few dozen kernels. Calls progress() and, on a GPU, keeps
  /// the host from running far ahead: a stream holds about a thousand pieces of work, and a call
  /// that blocks for room would hide a collective that hangs.
  void keep_pace();

  /// The stream that orders kernels; null on the CPU and in a counting Context.
  device_runtime::Stream stream() const { return stream_.get(); }
  /// Returns when everything started on this Context has finished; calls progress() meanwhile.
  /// Throws Error with the cause if the work failed.
  void wait() const;
  /// Returns when the work before the event has finished; otherwise as wait() above.
  void wait(device_runtime::Event event) const;

  /// Scratch for library calls on the GPU: [bytes] on this device, owned by the caller. Work
  /// ordered on stream() may share it. If it is not set, libraries choose methods that need none.
  void set_library_workspace(void* data, int64_t bytes) {
    library_workspace_ = data;
    library_workspace_bytes_ = bytes;
  }
  void* library_workspace() const { return library_workspace_; }
  int64_t library_workspace_bytes() const { return library_workspace_bytes_; }

  /// Implementation of attention on a GPU. Set it before workspaces are sized.
  AttentionChoice attention() const { return attention_; }
  void set_attention(AttentionChoice choice) { attention_ = choice; }

  /// The T that belongs to this context, created on first use: handles and plans of a library,
  /// which live as long as the stream they work on.
  template <typename T>
  T& kept() {
    std::shared_ptr<void>& object = kept_[std::type_index(typeid(T))];
    if (!object) object = std::make_shared<T>();
    return *static_cast<T*>(object.get());
  }

  Work& work() { return work_; }
  /// Seconds spent so far under each profiler range name (main thread only).
  std::map<std::string, double>& seconds() { return seconds_; }

 private:
  template <typename Work>  // a stream or an event
  void wait_until_finished(Work work) const;

  ContextOptions options_;
  Isa isa_;
  device_runtime::OwnedStream stream_;
  AttentionChoice attention_ = AttentionChoice::kAuto;
  std::map<std::type_index, std::shared_ptr<void>> kept_;  // after the stream: goes before it
  void* library_workspace_ = nullptr;
  int64_t library_workspace_bytes_ = 0;
  std::function<void()> progress_;
  // Of the last calls of keep_pace(), oldest first; after the stream.
  std::deque<device_runtime::OwnedEvent> pace_;
  Work work_;
  std::map<std::string, double> seconds_;
};

/// Throws Error unless the tensor lies on the context's device (undefined tensors pass). name: the
/// tensor's name in the message.
void check_on_device(const Context& context, const TensorView& view, const char* name);

/// body(begin, count) for all rows, in pieces of at most `piece`. A counting context runs one piece
/// of each size and multiplies its FLOPs, so that the time of a plan does not depend on the rows.
template <typename Body>
void for_pieces(Context& context, int64_t rows, int64_t piece, const Body& body) {
  int64_t begin = 0;
  if (context.counting() && rows >= 2 * piece) {
    const Work before = context.work();
    body(0, piece);
    context.work().repeat_since(before, rows / piece);
    begin = rows - rows % piece;
  }
  for (; begin < rows; begin += piece) body(begin, std::min(piece, rows - begin));
}

/// Profiler range: adds the time until its end to Context::seconds()[name]. The names are the words
/// of a step: data, embed, norm, qkv, gather, attention, out, feed_forward, loss, optimizer, ... A
/// build with CUDA also emits an NVTX range. It does not wait: on a GPU the seconds are the host's
/// time to start the work.
class Range {
 public:
  Range(Context& context, const char* name)
      : context_(context), name_(name), start_(std::chrono::steady_clock::now()) {
    device_runtime::range_push(name);
  }
  ~Range() {
    device_runtime::range_pop();
    context_.seconds()[name_] +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

 private:
  Context& context_;
  const char* name_;
  std::chrono::steady_clock::time_point start_;
};

/// A phase that contains ranges: step, forward, backward. It is an NVTX range only; its seconds are
/// those of its ranges.
class Phase {
 public:
  explicit Phase(const char* name) { device_runtime::range_push(name); }
  ~Phase() { device_runtime::range_pop(); }
  Phase(const Phase&) = delete;
  Phase& operator=(const Phase&) = delete;
};

}  // namespace longnet
