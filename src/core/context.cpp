// See context.h.
#include "core/context.h"

#include <omp.h>

#include <cstdlib>
#include <string_view>
#include <thread>

#include "core/threads.h"

namespace longnet {

const char* isa_name(Isa isa) {
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "generic";
}

Isa detect_isa() {
  Isa best = Isa::kGeneric;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Isa::kAvx2;
  if (best == Isa::kAvx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq"))
    best = Isa::kAvx512;
#endif
  const char* wanted = std::getenv("LONGNET_ISA");
  if (wanted != nullptr && *wanted != '\0') {
    const std::string_view name(wanted);
    for (Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512}) {
      if (name != isa_name(isa)) continue;
      if (isa > best)
        throw Error("LONGNET_ISA={}: this machine has only {}; unset it", name, isa_name(best));
      return isa;
    }
    throw Error("LONGNET_ISA={}: allowed are generic, avx2, avx512", name);
  }
  return best;
}

const char* attention_choice_name(AttentionChoice choice) {
  switch (choice) {
    case AttentionChoice::kAuto:
      return "auto";
    case AttentionChoice::kCudnn:
      return "cudnn";
    case AttentionChoice::kNative:
      return "native";
    case AttentionChoice::kPlain:
      break;
  }
  return "plain";
}

AttentionChoice attention_choice(const std::string& name) {
  for (AttentionChoice choice : {AttentionChoice::kAuto, AttentionChoice::kCudnn,
                                 AttentionChoice::kNative, AttentionChoice::kPlain})
    if (name == attention_choice_name(choice)) return choice;
  throw Error("run.attention: {} is not one of auto, cudnn, native, plain", name);
}

Context::Context(const ContextOptions& options) : options_(options), isa_(detect_isa()) {
  options_.threads = thread_count(options_.threads);
  if (!options_.counting && options_.device.type == DeviceType::kCPU) {
    // A team that changes with the machine's load (OMP_DYNAMIC) would change sums, too.
    omp_set_dynamic(0);
    omp_set_num_threads(options_.threads);
  }
  if (!options_.counting && on_gpu()) {
    device_runtime::select(options_.device);
    stream_.reset(device_runtime::make_stream());
  }
}

template <typename Work>
void Context::wait_until_finished(Work work) const {
  while (!device_runtime::finished(work)) {
    progress();
    std::this_thread::yield();
  }
}

void Context::wait() const {
  if (stream_) wait_until_finished(stream_.get());
}

void Context::wait(device_runtime::Event event) const { wait_until_finished(event); }

void Context::keep_pace() {
  constexpr size_t kAhead = 4;  // pieces of work that the GPU has not finished
  progress();
  if (!stream_) return;
  device_runtime::OwnedEvent event;
  if (pace_.size() < kAhead) {
    event.reset(device_runtime::make_event());
  } else {
    event = std::move(pace_.front());
    pace_.pop_front();
    wait(event.get());
  }
  device_runtime::record(event.get(), stream_.get());
  pace_.push_back(std::move(event));
}

void check_on_device(const Context& context, const TensorView& view, const char* name) {
  if (!view.defined() || view.device == context.device()) return;
  throw Error("{} {} lies on {}, this context works on {}", name, view.describe(),
              device_name(view.device), device_name(context.device()));
}

}  // namespace longnet
