// Context: where and how kernels run: device, threads, instruction set, progress and counters.
//
// A kernel call is ordered on the Context's stream and may return early; only wait() waits (on the
// CPU every call is finished when it returns). A counting Context runs nothing and needs no GPU:
// kernels add their FLOPs and return, which is how `longnet plan` measures a step without doing it.
#pragma once

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
/// Best one of this machine; LONGNET_ISA=generic|avx2|avx512 lowers it (tests run every one).
Isa detect_isa();
const char* isa_name(Isa isa);

/// Which implementation of attention a GPU takes (run.attention): the first of the three that takes
/// the call at hand, or one of them only.
enum class AttentionChoice { kAuto, kCudnn, kNative, kPlain };
/// The choice of "auto", "cudnn", "native" or "plain"; throws Error for another word.
AttentionChoice attention_choice(const std::string& name);
const char* attention_choice_name(AttentionChoice choice);

/// Floating point operations done so far (multiply and add count two). A share of the machine's
/// peak is taken of the first two only: what is computed a second time is no progress.
struct Work {
  double matmul_flops = 0;      // linear layers and the output projection
  double attention_flops = 0;   // of pairs that the mask keeps: 4 D forward, 8 D backward each
  double recomputed_flops = 0;  // of both kinds, repeated by a backward that kept no activations
};

struct ContextOptions {
  Device device;
  int threads = 0;  // 0: what OpenMP offers
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

  /// Called by long kernels between pieces of work, on the thread that called the kernel only: MPI
  /// moves no data by itself. The callback must not throw and not start kernels.
  void progress() const {
    if (progress_) progress_();
  }
  void set_progress(std::function<void()> progress) { progress_ = std::move(progress); }
  /// To be called between pieces of work of a few dozen kernels. progress(), and on a GPU it keeps
  /// the host from running far ahead: a stream has room for about a thousand pieces of work, and in
  /// a call that waits for room nobody would notice a collective that hangs.
  void keep_pace();

  /// Where kernels are ordered; null on the CPU and in a counting Context.
  device_runtime::Stream stream() const { return stream_.get(); }
  /// Returns when everything started on this Context has finished; calls progress() meanwhile.
  /// Throws Error with what the work failed with.
  void wait() const;
  /// The same for what the event stands for.
  void wait(device_runtime::Event event) const;

  /// Scratch that library calls on the GPU may use, [bytes] on this device, the caller's; whatever
  /// is ordered on stream() may share it. Undefined: libraries choose methods that need none.
  void set_library_workspace(void* data, int64_t bytes) {
    library_workspace_ = data;
    library_workspace_bytes_ = bytes;
  }
  void* library_workspace() const { return library_workspace_; }
  int64_t library_workspace_bytes() const { return library_workspace_bytes_; }

  /// Implementation of attention on a GPU. To be set before workspaces are sized.
  AttentionChoice attention() const { return attention_; }
  void set_attention(AttentionChoice choice) { attention_ = choice; }

  /// The T that belongs to this context, made when first asked for: handles and plans of a library,
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

/// Throws Error unless the tensor lies on the context's device (undefined tensors pass). name: what
/// the message calls it.
void check_on_device(const Context& context, const TensorView& view, const char* name);

/// Profiler range: adds the time until its end to Context::seconds()[name]. The names are the words
/// of a step: data, embed, norm, qkv, gather, attention, out, feed_forward, loss, optimizer, ...
/// In a build with CUDA it is also an NVTX range. It waits for nothing: with a GPU the seconds are
/// those that the host took to start the work.
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

/// What ranges lie in: step, forward, backward. An NVTX range only; its seconds are its ranges'.
class Phase {
 public:
  explicit Phase(const char* name) { device_runtime::range_push(name); }
  ~Phase() { device_runtime::range_pop(); }
  Phase(const Phase&) = delete;
  Phase& operator=(const Phase&) = delete;
};

}  // namespace longnet
