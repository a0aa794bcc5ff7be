// Which GPU a rank takes, and what is said where none is left. Decided on the host: needs no GPU.
#include "train/backend.h"

#include <gtest/gtest.h>

#include "core/device_runtime.h"
#include "train/agreement.h"

namespace longnet::test {
namespace {

using Ids = std::vector<std::string>;

std::vector<VisibleGpus> ranks_seeing(const std::vector<Ids>& ids) {
  std::vector<VisibleGpus> ranks;
  for (const Ids& i : ids) ranks.push_back({"host", static_cast<int>(ids.size()), i, ""});
  return ranks;
}

std::vector<int> devices_of(const std::vector<Ids>& ids) {
  const std::vector<VisibleGpus> ranks = ranks_seeing(ids);
  std::vector<int> devices;
  for (size_t r = 0; r < ranks.size(); ++r)
    devices.push_back(gpu_of_rank(ranks, static_cast<int>(r)).value_or(-1));
  return devices;
}

TEST(Backend, RanksOfANodeTakeItsGpusInOrder) {
  const Ids node0{"a", "b", "c"}, node1{"d", "e", "f"};
  EXPECT_EQ(devices_of({node0, node0, node1, node1, node1}), (std::vector<int>{0, 1, 0, 1, 2}));
  EXPECT_EQ(devices_of({node0, node1, node0, node1}), (std::vector<int>{0, 0, 1, 1}));
}

TEST(Backend, RanksThatAreShownOneGpuEachTakeIt) {
  EXPECT_EQ(devices_of({{"a"}, {"b"}, {"c"}}), (std::vector<int>{0, 0, 0}));
  EXPECT_EQ(devices_of({{"a", "b"}, {"b", "a"}}), (std::vector<int>{0, 0}));
}

TEST(Backend, NoGpuIsSharedByTwoRanks) {
  EXPECT_EQ(devices_of({{"a"}, {"a"}}), (std::vector<int>{0, -1}));
  EXPECT_EQ(devices_of({{"a", "b"}, {"a", "b"}, {"a", "b"}}), (std::vector<int>{0, 1, -1}));
  EXPECT_EQ(devices_of({{}, {"a"}}), (std::vector<int>{-1, 0}));
}

TEST(Backend, MessagesNameHostReasonAndRemedy) {
  EXPECT_EQ(
      no_gpu_message({"n7", 2, {}, "no NVIDIA driver is loaded"}, 0),
      "run.backend=cuda: no GPU on n7: no NVIDIA driver is loaded; set run.backend=cpu or use "
      "a node with a GPU");
  EXPECT_EQ(
      no_gpu_message({"n7", 2, {"a"}, ""}, 1),
      "run.backend=cuda: 2 ranks on n7 see 1 GPU in total, and none is left for rank 1 of the "
      "node; start at most 1 there, or make more GPUs visible (CUDA_VISIBLE_DEVICES)");
}

TEST(Backend, OldGpusAreNamedWithWhatIsAllowed) {
  EXPECT_EQ(
      old_gpu_message("n7", {"a", "Tesla T4", 7, 5}),
      "run.backend=cuda: the GPU on n7 is a Tesla T4 of compute capability 7.5, but 8.0 or newer "
      "is needed; set run.backend=cpu, or make a newer GPU visible (CUDA_VISIBLE_DEVICES)");
  EXPECT_EQ(old_gpu_message("n7", {"a", "NVIDIA A100", 8, 0}), "");
  EXPECT_EQ(old_gpu_message("n7", {"a", "NVIDIA B200", 10, 0}), "");
}

TEST(Backend, CpuNeedsNothingAndCudaSaysWhatIsMissing) {
  const auto world = make_single_communicator();
  EXPECT_EQ(device_of_rank(*world, "cpu"), Device{});
  if (!device_runtime::availability().devices.empty()) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_THROW(device_of_rank(*world, "cuda"), AgreedError);
}

}  // namespace
}  // namespace longnet::test
