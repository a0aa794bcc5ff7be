// See backend.h.
#include "train/backend.h"

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>

#include "core/json.h"
#include "core/system.h"
#include "dist/communicator_nccl.h"
#include "train/agreement.h"

namespace longnet {
namespace {

VisibleGpus visible_gpus(const Communicator& world, const device_runtime::Availability& found) {
  VisibleGpus gpus;
  gpus.host = host_name();
  gpus.local_size = world.local_size();
  for (const device_runtime::VisibleDevice& device : found.devices) gpus.ids.push_back(device.id);
  // docs/cli.md: every rank counts the GPUs it sees as its own, to try several ranks on one GPU.
  if (const char* const share = std::getenv("LONGNET_SHARE_GPUS"); share && *share == '1')
    for (std::string& id : gpus.ids) id += fmt::format(" of rank {}", world.rank());
  gpus.reason = found.reason;
  return gpus;
}

}  // namespace

std::optional<int> gpu_of_rank(const std::vector<VisibleGpus>& ranks, int rank) {
  std::set<std::string> taken;
  for (int r = 0; r <= rank; ++r) {
    const std::vector<std::string>& ids = ranks[r].ids;
    size_t index = 0;
    while (index < ids.size() && taken.count(ids[index])) ++index;
    if (r == rank) return index < ids.size() ? std::optional<int>(index) : std::nullopt;
    if (index < ids.size()) taken.insert(ids[index]);
  }
  return std::nullopt;
}

std::string no_gpu_message(const VisibleGpus& gpus, int local_rank) {
  if (gpus.ids.empty())
    return fmt::format(
        "run.backend=cuda: no GPU on {}: {}; set run.backend=cpu or use a node with a GPU",
        gpus.host, gpus.reason);
  return fmt::format(
      "run.backend=cuda: {} ranks on {} see {} GPU{} in total, and none is left for rank {} of the "
      "node; start at most {} there, or make more GPUs visible (CUDA_VISIBLE_DEVICES)",
      gpus.local_size, gpus.host, gpus.ids.size(), gpus.ids.size() == 1 ? "" : "s", local_rank,
      gpus.ids.size());
}

std::string old_gpu_message(const std::string& host, const device_runtime::VisibleDevice& gpu) {
  if (gpu.major >= 8) return "";
  return fmt::format(
      "run.backend=cuda: the GPU on {} is a {} of compute capability {}.{}, but 8.0 or newer is "
      "needed; set run.backend=cpu, or make a newer GPU visible (CUDA_VISIBLE_DEVICES)",
      host, gpu.name, gpu.major, gpu.minor);
}

Device device_of_rank(Communicator& world, const std::string& backend) {
  if (backend != "cuda") return {};
  device_runtime::Availability found;
  VisibleGpus own;
  run_on_all(world, [&] {
    if (!device_runtime::built_with_cuda())
      throw Error(
          "run.backend=cuda: this program was built without CUDA; set run.backend=cpu, or build "
          "it with scripts/build.sh cuda where the CUDA toolkit is installed");
    found = device_runtime::availability();
    own = visible_gpus(world, found);
  });
  const std::vector<std::string> gathered =
      world.all_gather_strings(json_text(nlohmann::json(own.ids)));
  Device device{DeviceType::kCUDA, 0};
  run_on_all(world, [&] {
    std::vector<VisibleGpus> ranks(gathered.size());
    for (size_t r = 0; r < gathered.size(); ++r)
      ranks[r].ids = parse_json(gathered[r]).get<std::vector<std::string>>();
    const std::optional<int> index = gpu_of_rank(ranks, world.rank());
    if (!index) throw Error(no_gpu_message(own, world.local_rank()));
    if (const std::string old = old_gpu_message(own.host, found.devices[*index]); !old.empty())
      throw Error("{}", old);
    device.index = *index;
  });
  return device;
}

std::unique_ptr<Communicator> transport_of(const Context& context,
                                           std::unique_ptr<Communicator> world,
                                           const ParallelConfig& parallel) {
  set_host_timeout(parallel.timeout_s);
  if (!context.on_gpu()) return world;
  return make_nccl_communicator(std::move(world), {.compute = context.stream(),
                                                   .device = context.device(),
                                                   .timeout_seconds = parallel.timeout_s});
}

}  // namespace longnet
