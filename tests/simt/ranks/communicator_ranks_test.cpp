// The nccl transport and what dist builds on it, in GPU memory on several ranks, over the stand-in
// of NCCL: held against the mpi transport in host memory, bit by bit (the stand-in, too, adds in
// rank order). Work of a stream runs as late as its order allows, so a missing wait shows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include "dist/communicator_nccl.h"
#include "dist/mesh.h"
#include "simt/device_values.h"
#include "simt/emulator.h"
#include "simt/ranks/nccl_faults.h"
#include "simt/stream_work.h"

namespace longnet::simt_test {
namespace {

using simt::nccl_calls;

/// A rank's GPU and the nccl transport over all ranks; beside it the mpi transport.
struct Ranks {
  Context context = gpu_context();
  std::unique_ptr<Communicator> mpi = make_mpi_communicator();
  std::unique_ptr<Communicator> nccl =
      make_nccl_communicator(make_mpi_communicator(),
                             {.compute = context.stream(), .device = kGpu, .timeout_seconds = 60});
  int size = mpi->size(), rank = mpi->rank();
};

std::vector<float> random_floats(int64_t n, uint64_t seed) { return test::random_values(n, seed); }

/// Chunk limits, the same on all ranks. kind 0: equal, 1: like equal ones but for a few elements,
/// 2: anything, often empty, 3: all in one chunk.
std::vector<int64_t> chunks(int size, int kind, std::mt19937_64& random) {
  std::vector<int64_t> begin{0};
  const int owner = static_cast<int>(random() % size);
  const auto length = static_cast<int64_t>(1 + random() % 700);
  for (int m = 0; m < size; ++m) {
    int64_t own = length;
    if (kind == 1) own += static_cast<int64_t>(random() % 3);
    if (kind == 2) own = random() % 3 == 0 ? 0 : static_cast<int64_t>(random() % 700);
    if (kind == 3) own = m == owner ? length : 0;
    begin.push_back(begin.back() + own);
  }
  return begin;
}
std::vector<int64_t> times(std::vector<int64_t> begin, int64_t width) {
  for (int64_t& b : begin) b *= width;
  return begin;
}
std::vector<float> part(const std::vector<float>& values, int64_t begin, int64_t end) {
  return {values.begin() + begin, values.begin() + end};
}

/// True if all ranks say so.
bool everywhere(Communicator& mpi, bool mine) {
  double no = mine ? 0 : 1;
  mpi.all_reduce_max({&no, 1});
  return no == 0;
}

TEST(NcclRanks, AllGatherOfEveryKindOfChunks) {
  Ranks r;
  std::mt19937_64 random(1);
  for (int round = 0; round < 24; ++round) {
    const std::vector<int64_t> begin = chunks(r.size, round % 4, random);
    std::vector<float> expected(begin.back()), mine(begin.back(), -7.0f);
    for (int m = 0; m < r.size; ++m)
      for (int64_t i = begin[m]; i < begin[m + 1]; ++i)
        expected[i] = static_cast<float>(1000 * m + i + round);
    for (int64_t i = begin[r.rank]; i < begin[r.rank + 1]; ++i) mine[i] = expected[i];
    const DeviceValues buffer(DType::kF32, mine);
    const auto request = r.nccl->start_all_gather(buffer.data(), times(begin, 4));
    EXPECT_EQ(r.nccl->last_bytes(), (r.size - 1) * (begin[r.rank + 1] - begin[r.rank]) * 4);
    EXPECT_EQ(buffer.floats(), mine) << "arrives before it is waited for";
    r.nccl->wait(request);
    EXPECT_EQ(buffer.floats(), expected) << "round " << round;
  }
  if (r.size > 1) {
    EXPECT_GT(nccl_calls("ncclAllGather"), 0);
    EXPECT_TRUE(everywhere(*r.mpi, nccl_calls("ncclSend") > 0));
    EXPECT_EQ(nccl_calls("ncclBroadcast") > 0, r.size > 2);  // of two ranks a direct one is as good
  }
}

/// Largest number of wrong ranks: reduce-scatter of random numbers against the mpi transport.
bool reduce_scatter_is_right(Ranks& r, int kind, std::mt19937_64& random, int round) {
  const std::vector<int64_t> begin = chunks(r.size, kind, random);
  const int64_t own = begin[r.rank + 1] - begin[r.rank];
  std::vector<float> values = random_floats(begin.back(), 100 * round + r.rank);
  const DeviceValues buffer(DType::kF32, values);
  const DeviceValues staging(DType::kF32, std::min((r.size - 1) * own, begin.back()));
  r.nccl->wait(r.nccl->start_reduce_scatter(static_cast<float*>(buffer.data()), begin,
                                            static_cast<float*>(staging.data())));
  std::vector<float> staged((r.size - 1) * own);
  r.mpi->wait(r.mpi->start_reduce_scatter(values.data(), begin, staged.data()));
  return everywhere(*r.mpi, part(buffer.floats(), begin[r.rank], begin[r.rank + 1]) ==
                                part(values, begin[r.rank], begin[r.rank + 1]));
}

TEST(NcclRanks, ReduceScatterHasTheBitsOfTheMpiTransport) {
  Ranks r;
  std::mt19937_64 random(2);
  for (int round = 0; round < 24; ++round)
    EXPECT_TRUE(reduce_scatter_is_right(r, round % 4, random, round)) << "round " << round;
  if (r.size > 1) {
    EXPECT_GT(nccl_calls("ncclReduceScatter"), 0);
    EXPECT_EQ(nccl_calls("ncclReduce") > 0, r.size > 2);
  }
}

TEST(NcclRanks, TheSumOfRaggedChunksIsInRankOrder) {
  Ranks r;
  for (const int bug : {9001, 9002}) {
    if (r.size < (bug == 9001 ? 2 : 3)) continue;
    const simt::Defect defect(bug);
    std::mt19937_64 random(3);
    int wrong = 0;
    for (int round = 0; round < 4; ++round) wrong += !reduce_scatter_is_right(r, 1, random, round);
    EXPECT_GT(wrong, 0) << "defect " << bug << " was not found";
  }
}

TEST(NcclRanks, AllReduce) {
  Ranks r;
  for (const int64_t n : {0, 1, 257, 4001}) {
    std::vector<float> values = random_floats(n, 10 + r.rank);
    const DeviceValues buffer(DType::kF32, values);
    r.nccl->wait(r.nccl->start_all_reduce_sum(static_cast<float*>(buffer.data()), n));
    r.mpi->wait(r.mpi->start_all_reduce_sum(values.data(), n));
    EXPECT_EQ(buffer.floats(), values) << n;
  }
}

TEST(NcclRanks, GroupsOfASplit) {
  Ranks r;
  const auto pairs = r.nccl->split(r.rank / 2, -r.rank);  // reversed
  ASSERT_NE(pairs, nullptr);
  EXPECT_EQ(pairs->size(), std::min(2, r.size - r.rank / 2 * 2));
  EXPECT_EQ(pairs->transport(), "nccl");
  const DeviceValues value(DType::kF32, std::vector<float>{static_cast<float>(r.rank + 1)});
  pairs->wait(pairs->start_all_reduce_sum(static_cast<float*>(value.data()), 1));
  const float other = static_cast<float>((r.rank ^ 1) < r.size ? (r.rank ^ 1) + 1 : 0);
  EXPECT_EQ(value.floats()[0], static_cast<float>(r.rank + 1) + other);
  const auto odd = r.nccl->split_known(r.size / 2, r.rank / 2, r.rank % 2 ? 5 : -1, r.rank);
  EXPECT_EQ(odd == nullptr, r.rank % 2 == 0);
  // The parent goes on.
  const DeviceValues one(DType::kF32, std::vector<float>{1.0f});
  r.nccl->wait(r.nccl->start_all_reduce_sum(static_cast<float*>(one.data()), 1));
  EXPECT_EQ(one.floats()[0], static_cast<float>(r.size));
}

TEST(NcclRanks, SmallThingsTravelInHostMemory) {
  Ranks r;
  std::vector<int64_t> begin{0};
  for (int m = 0; m < r.size; ++m) begin.push_back(begin.back() + 8 * (m + 1));
  std::vector<double> values(begin.back() / 8, 0.0);
  for (int64_t i = begin[r.rank] / 8; i < begin[r.rank + 1] / 8; ++i) values[i] = 1.5 * i;
  const int64_t before = r.nccl->bytes_sent();
  r.nccl->all_gather_host(values.data(), begin);
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], 1.5 * static_cast<double>(i));
  EXPECT_EQ(r.nccl->bytes_sent() - before, (r.size - 1) * 8 * (r.rank + 1));
  std::array<double, 1> sum{1.0};
  r.nccl->all_reduce_sum(sum);
  EXPECT_EQ(sum[0], r.size);
  EXPECT_EQ(r.nccl->all_gather_strings("x").size(), static_cast<size_t>(r.size));
  r.nccl->barrier();
  EXPECT_TRUE(r.nccl->on_stream());
  EXPECT_EQ(r.nccl->device(), kGpu);
}

TEST(NcclRanks, TestIsTrueWhenTheWorkHasEnded) {
  Ranks r;
  if (r.size == 1) GTEST_SKIP() << "one rank has no work";
  const bool old = simt::set_polls_advance(true);
  const DeviceValues one(DType::kF32, std::vector<float>(5000, 1.0f));
  const auto request = r.nccl->start_all_reduce_sum(static_cast<float*>(one.data()), 5000);
  int64_t polls = 0;
  while (!r.nccl->test(request)) ++polls;
  simt::set_polls_advance(old);
  EXPECT_EQ(one.floats()[4999], static_cast<float>(r.size)) << polls << " polls";
  EXPECT_THROW(r.nccl->test(request), Error);
  EXPECT_THROW(r.nccl->wait(request), Error);
}

TEST(NcclRanks, MemoryOfTheWrongKindIsRefused) {
  Ranks r;
  if (r.size == 1) GTEST_SKIP() << "one rank moves nothing";
  const DeviceValues on_gpu(DType::kF32, 64);
  std::vector<float> on_host(64);
  const TensorView host(on_host.data(), DType::kF32, {64});
  try {
    GradientSum sum(*r.nccl, host);
    FAIL() << "was not refused";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "gradients f32[64] lies on cpu, the nccl transport works on cuda:0");
  }
  EXPECT_THROW(GradientSum(*r.mpi, on_gpu.flat()), Error);
  const std::vector<int64_t> limits = shard_limits(64, r.size);
  EXPECT_THROW(ParameterGather(*r.mpi, on_gpu.flat(), limits), Error);
}

TEST(NcclRanks, GradientSumsOfRandomRangesAndBuckets) {
  Ranks r;
  std::mt19937_64 random(5);  // the same on every rank
  for (const bool sharded : {false, true})
    for (const int64_t bucket : {1024, 5000, 1 << 20}) {
      const int64_t n = 3000;
      std::vector<int64_t> limits;
      if (sharded) limits = shard_limits(n, r.size);
      if (sharded && r.size > 2) limits[1] = 128;  // unequal: rank 0 has next to nothing
      std::vector<float> expected(n);
      const DeviceValues gradients(DType::kF32, std::vector<float>(n, 0.0f));
      GradientSum on_gpu(*r.nccl, gradients.flat(), bucket, limits);
      GradientSum on_host(*r.mpi, TensorView(expected.data(), DType::kF32, {n}), bucket, limits);
      for (int step = 0; step < 2; ++step) {
        const std::vector<float> mine = random_floats(n, 7 * step + 31 * r.rank + sharded);
        for (int64_t begin = 0; begin < n;) {
          const int64_t end = std::min<int64_t>(n, begin + static_cast<int64_t>(random() % 900));
          // Written only now, as a backward does.
          std::copy(mine.begin() + begin, mine.begin() + end, expected.begin() + begin);
          device_runtime::copy_to_device(static_cast<float*>(gradients.data()) + begin,
                                         mine.data() + begin, 4 * (end - begin),
                                         r.context.stream());
          on_gpu.ready(begin, end);
          on_host.ready(begin, end);
          on_gpu.progress();
          begin = end;
        }
        on_gpu.wait();
        on_host.wait();
        const std::vector<float> values = gradients.floats();
        const int64_t first = sharded ? limits[r.rank] : 0;
        const int64_t last = sharded ? limits[r.rank + 1] : n;
        EXPECT_EQ(part(values, first, last), part(expected, first, last))
            << "bucket " << bucket << ", sharded " << sharded << ", step " << step;
      }
      EXPECT_EQ(on_gpu.bytes_sent() > 0, r.size > 1);
      // What `longnet plan` counts, without memory.
      const auto counting = make_counting_communicator(r.size, r.rank);
      const TensorView nowhere(reinterpret_cast<void*>(uintptr_t{256}), DType::kF32, {n}, kGpu);
      const GradientSum planned(*counting, nowhere, bucket, limits);
      EXPECT_EQ(planned.staging_bytes(), on_gpu.staging_bytes());
      EXPECT_LE(on_gpu.staging_bytes(), sharded ? bucket : 0);
    }
}

TEST(NcclRanks, ParametersOfUnequalShardsReachAllRanks) {
  Ranks r;
  for (const int64_t bucket : {256, 4096, 1 << 20}) {
    const int64_t n = 3001;
    std::vector<int64_t> limits = shard_limits(n, r.size);
    if (r.size > 2) limits[1] = 128;
    const DeviceValues parameters(DType::kF32, std::vector<float>(n, -1.0f));
    ParameterGather gather(*r.nccl, parameters.flat(), limits, bucket);
    for (int step = 0; step < 2; ++step) {
      std::vector<float> expected(n);
      for (int64_t i = 0; i < n; ++i) expected[i] = static_cast<float>(i + 10000 * step);
      for (int64_t at = limits[r.rank]; at < limits[r.rank + 1];) {
        const int64_t end = std::min(at + gather.piece_elements(), limits[r.rank + 1]);
        device_runtime::copy_to_device(static_cast<float*>(parameters.data()) + at,
                                       expected.data() + at, 4 * (end - at), r.context.stream());
        gather.ready(end);
        at = end;
      }
      gather.ready(limits[r.rank + 1]);
      gather.wait();
      EXPECT_EQ(parameters.floats(), expected) << "bucket " << bucket << ", step " << step;
    }
  }
}

TEST(NcclRanks, SequenceExchangeHasTheBitsOfTheMpiTransport) {
  Ranks r;
  std::mt19937_64 random(11);
  const auto pick = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % (high - low + 1));
  };
  for (int round = 0; round < 16; ++round) {
    const int64_t tokens = pick(0, 4) == 0 ? pick(1, r.size) : pick(1, 150);
    const int64_t heads = pick(1, 5), batch = pick(1, 2), head_dim = pick(1, 9);
    std::vector<Branch> branches;
    for (int64_t k = pick(1, 3); k > 0; --k)
      branches.push_back({pick(1, tokens + 20), pick(1, pick(0, 1) == 0 ? 3 : 40)});
    const SequencePlan plan(tokens, r.size, r.rank, heads, branches, HeadOffset::kInterleaved);
    SequenceExchange on_gpu(*r.nccl, plan, batch, head_dim);
    SequenceExchange on_host(*r.mpi, plan, batch, head_dim);
    struct Piece {
      int branch, which;
      std::vector<float> host;
      std::unique_ptr<DeviceValues> gpu;
      GatherLayout layout;
      int64_t number;
      TensorView view() {
        return TensorView(host.data(), DType::kF32, {static_cast<int64_t>(layout.elements())});
      }
      TensorView gpu_view() const { return gpu->view({layout.elements()}); }
    };
    std::vector<Piece> pieces;
    for (int branch = 0; branch < static_cast<int>(branches.size()); ++branch) {
      const auto segments = plan.gathered_segments(branch);
      for (int which = 0; which < static_cast<int>(segments.size()); ++which)
        pieces.push_back({branch,
                          which,
                          {},
                          nullptr,
                          GatherLayout(plan, branch, segments[which], batch, head_dim),
                          segments[which].number});
    }
    std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
      return std::pair(a.branch, a.number % 2) < std::pair(b.branch, b.number % 2);
    });
    const auto fill = [&](int salt) {
      for (Piece& p : pieces) {
        p.host = random_floats(p.layout.elements() + 1, 1000 * salt + 10 * r.rank + p.branch);
        p.gpu = std::make_unique<DeviceValues>(DType::kF32, p.host);
      }
    };
    const auto same = [&](const Piece& p, int64_t begin, int64_t end) {
      EXPECT_EQ(part(p.gpu->floats(), begin, end), part(p.host, begin, end)) << "round " << round;
    };
    fill(1);
    for (Piece& p : pieces) on_gpu.start_gather(p.branch, p.which, p.gpu_view());
    for (Piece& p : pieces) on_host.start_gather(p.branch, p.which, p.view());
    on_gpu.progress();
    for (Piece& p : pieces) {
      on_gpu.wait_gather(p.branch, p.which);
      on_host.wait_gather(p.branch, p.which);
      same(p, 0, p.layout.elements());
    }
    fill(2);
    for (Piece& p : pieces) on_gpu.start_reduce(p.branch, p.which, p.gpu_view());
    for (Piece& p : pieces) on_host.start_reduce(p.branch, p.which, p.view());
    for (Piece& p : pieces) {
      on_gpu.wait_reduce(p.branch, p.which);
      on_host.wait_reduce(p.branch, p.which);
      same(p, p.layout.chunk_begin(p.layout.mine), p.layout.chunk_begin(p.layout.mine + 1));
    }
    EXPECT_EQ(on_gpu.traffic().forward_bytes, on_host.traffic().forward_bytes);
    EXPECT_EQ(on_gpu.traffic().backward_bytes, on_host.traffic().backward_bytes);
    EXPECT_EQ(on_gpu.staging_bytes(), on_host.staging_bytes());
  }
}

}  // namespace
}  // namespace longnet::simt_test
