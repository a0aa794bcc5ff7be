// The collectives, on integers that float32 holds exactly, so every comparison is for equality.
#include "dist/communicator.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <random>

#include "dist/bench_collectives.h"
#include "dist/mesh.h"
#include "dist/mpi_check.h"

namespace longnet::test {
namespace {

/// Chunk limits [size + 1]; about a third of the chunks are empty. The same on every rank.
std::vector<int64_t> ragged_chunks(int size, int64_t longest, std::mt19937_64& random) {
  std::vector<int64_t> begin{0};
  for (int member = 0; member < size; ++member)
    begin.push_back(begin.back() +
                    (random() % 3 == 0 ? 0 : static_cast<int64_t>(random() % (longest + 1))));
  return begin;
}

/// A value of its own for every (rank, index), small enough for exact sums over 8 ranks.
float value_of(int rank, int64_t i) {
  return static_cast<float>((i * 31 + rank * 977 + i * rank) % 65521) - 32000.0f;
}

struct Gather {
  std::vector<int64_t> begin;
  std::vector<uint8_t> buffer;
  Communicator::Request request = 0;
};
uint8_t byte_of(int member, int64_t at) { return static_cast<uint8_t>(at * 7 + member * 41 + 3); }

Gather start_gather(Communicator& comm, std::vector<int64_t> begin) {
  Gather gather{std::move(begin), {}, 0};
  gather.buffer.assign(gather.begin.back() + 8, 0xEE);
  for (int64_t i = gather.begin[comm.rank()]; i < gather.begin[comm.rank() + 1]; ++i)
    gather.buffer[i] = byte_of(comm.rank(), i);
  gather.request = comm.start_all_gather(gather.buffer.data(), gather.begin);
  return gather;
}
void expect_gathered(const Communicator& comm, const Gather& gather) {
  int64_t wrong = 0;
  for (int member = 0; member < comm.size(); ++member)
    for (int64_t i = gather.begin[member]; i < gather.begin[member + 1]; ++i)
      wrong += gather.buffer[i] != byte_of(member, i);
  for (int i = 0; i < 8; ++i) wrong += gather.buffer[gather.begin.back() + i] != 0xEE;
  EXPECT_EQ(wrong, 0);
}

struct Reduce {
  std::vector<int64_t> begin;
  std::vector<float> buffer, staging;
  Communicator::Request request = 0;
};
Reduce start_reduce(Communicator& comm, std::vector<int64_t> begin) {
  Reduce reduce{std::move(begin), {}, {}, 0};
  reduce.buffer.resize(reduce.begin.back());
  for (int64_t i = 0; i < reduce.begin.back(); ++i) reduce.buffer[i] = value_of(comm.rank(), i);
  const int64_t own = reduce.begin[comm.rank() + 1] - reduce.begin[comm.rank()];
  reduce.staging.assign((comm.size() - 1) * own, -1.0f);
  reduce.request =
      comm.start_reduce_scatter(reduce.buffer.data(), reduce.begin, reduce.staging.data());
  return reduce;
}
float sum_of(const Communicator& comm, int64_t i) {
  float sum = 0;
  for (int rank = 0; rank < comm.size(); ++rank) sum += value_of(rank, i);
  return sum;
}
void expect_reduced(const Communicator& comm, const Reduce& reduce) {
  int64_t wrong = 0;
  for (int64_t i = reduce.begin[comm.rank()]; i < reduce.begin[comm.rank() + 1]; ++i)
    wrong += reduce.buffer[i] != sum_of(comm, i);
  EXPECT_EQ(wrong, 0);
}

TEST(Communicator, AllGatherEqualRaggedAndEmptyChunks) {
  const auto comm = make_mpi_communicator();
  std::mt19937_64 random(1);
  for (int64_t longest : {0, 1, 3, 257, 5000, 70000}) {
    const Gather gather = start_gather(*comm, ragged_chunks(comm->size(), longest, random));
    comm->wait(gather.request);
    expect_gathered(*comm, gather);
    EXPECT_EQ(comm->last_bytes(),
              (comm->size() - 1) * (gather.begin[comm->rank() + 1] - gather.begin[comm->rank()]));
  }
}

TEST(Communicator, ReduceScatterAddsExactlyAndCountsBytes) {
  const auto comm = make_mpi_communicator();
  std::mt19937_64 random(2);
  for (int64_t longest : {0, 1, 100, 2048, 9000}) {
    const Reduce reduce = start_reduce(*comm, ragged_chunks(comm->size(), longest, random));
    comm->wait(reduce.request);
    expect_reduced(*comm, reduce);
    const int64_t own = reduce.begin[comm->rank() + 1] - reduce.begin[comm->rank()];
    EXPECT_EQ(comm->last_bytes(), 4 * (reduce.begin.back() - own));
  }
}

TEST(Communicator, ReduceScatterAddsInRankOrder) {
  // 1e8 + 1 is not a float32: only the order ((1e8 - 1e8) + 1) + 1 ... keeps the ones.
  const auto comm = make_mpi_communicator();
  const int size = comm->size();
  std::vector<int64_t> begin(size + 1);
  std::iota(begin.begin(), begin.end(), 0);
  const float mine = comm->rank() == 0 ? 1e8f : comm->rank() == 1 ? -1e8f : 1.0f;
  std::vector<float> buffer(size, mine), staging(size);
  comm->wait(comm->start_reduce_scatter(buffer.data(), begin, staging.data()));
  const float expected = size == 1 ? 1e8f : static_cast<float>(size - 2);
  EXPECT_EQ(buffer[comm->rank()], expected);
  std::vector<float> all(5 * size + 1, mine);
  comm->wait(comm->start_all_reduce_sum(all.data(), static_cast<int64_t>(all.size())));
  for (float value : all) EXPECT_EQ(value, expected);
}

TEST(Communicator, AllReduceOfEveryLength) {
  const auto comm = make_mpi_communicator();
  const int64_t size = comm->size();
  for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{2}, size - 1, size, size + 1, int64_t{1000},
                    int64_t{40001}}) {
    std::vector<float> values(n + 1);
    for (int64_t i = 0; i < n; ++i) values[i] = value_of(comm->rank(), i);
    values[n] = 5;
    const int64_t before = comm->bytes_sent();
    comm->wait(comm->start_all_reduce_sum(values.data(), n));
    int64_t wrong = values[n] != 5;
    for (int64_t i = 0; i < n; ++i) wrong += values[i] != sum_of(*comm, i);
    EXPECT_EQ(wrong, 0) << n;
    if (n % size == 0) {
      EXPECT_EQ(comm->bytes_sent() - before, 2 * (size - 1) * (n / size) * 4);
    }
  }
}

TEST(Communicator, AllReduceGivesTheSameBitsEverywhereAndEveryTime) {
  const auto comm = make_mpi_communicator();
  std::mt19937_64 random(77 + comm->rank());
  std::normal_distribution<float> normal;
  std::vector<float> mine(10007);
  for (float& v : mine) v = normal(random);
  std::vector<float> first;
  for (int run = 0; run < 3; ++run) {
    std::vector<float> values = mine;
    comm->wait(comm->start_all_reduce_sum(values.data(), static_cast<int64_t>(values.size())));
    if (run == 0) first = values;
    EXPECT_EQ(std::memcmp(first.data(), values.data(), 4 * values.size()), 0);
    std::vector<float> of_rank0 = values;
    comm->broadcast(of_rank0.data(), static_cast<int64_t>(4 * of_rank0.size()), 0);
    EXPECT_EQ(std::memcmp(of_rank0.data(), values.data(), 4 * values.size()), 0);
  }
  std::vector<double> sums{0.1 * comm->rank(), 1e16, comm->rank() == 0 ? 1e300 : 1.0};
  comm->all_reduce_sum(sums);
  std::vector<double> of_rank0 = sums;
  comm->broadcast(of_rank0.data(), static_cast<int64_t>(8 * of_rank0.size()), 0);
  EXPECT_EQ(std::memcmp(of_rank0.data(), sums.data(), 8 * sums.size()), 0);
}

TEST(Communicator, LargeTransfersGoInPieces) {
  std::mt19937_64 random(3);
  for (int64_t limit : {8, 12, 1000}) {  // 12 and 1000: not multiples of a chunk
    const auto comm = make_mpi_communicator(limit);
    Gather gather = start_gather(*comm, ragged_chunks(comm->size(), 3001, random));
    Reduce reduce = start_reduce(*comm, ragged_chunks(comm->size(), 1003, random));
    std::vector<float> values(777);
    for (int64_t i = 0; i < 777; ++i) values[i] = value_of(comm->rank(), i);
    const auto request = comm->start_all_reduce_sum(values.data(), 777);
    comm->wait(request);
    comm->wait(gather.request);
    comm->wait(reduce.request);
    expect_gathered(*comm, gather);
    expect_reduced(*comm, reduce);
    int64_t wrong = 0;
    for (int64_t i = 0; i < 777; ++i) wrong += values[i] != sum_of(*comm, i);
    EXPECT_EQ(wrong, 0) << limit;

    std::vector<int64_t> numbers(501);
    std::iota(numbers.begin(), numbers.end(), 100 * comm->rank());
    comm->all_reduce_sum(numbers);
    const int64_t size = comm->size();
    for (int64_t i = 0; i < 501; ++i)
      ASSERT_EQ(numbers[i], size * i + 100 * size * (size - 1) / 2) << limit;
    std::vector<int64_t> sent(999, comm->rank() == size - 1 ? 7 : 1);
    comm->broadcast(sent.data(), 8 * 999, comm->size() - 1);
    EXPECT_EQ(std::count(sent.begin(), sent.end(), 7), 999);
  }
}

TEST(Communicator, ManyOutstandingInAnyOrderOfCompletion) {
  const auto comm = make_mpi_communicator();
  std::mt19937_64 same(4), own(100 + comm->rank());
  for (int round = 0; round < 3; ++round) {
    std::vector<Gather> gathers;
    std::vector<Reduce> reduces;
    std::vector<std::vector<float>> sums(20);
    std::vector<Communicator::Request> requests;
    for (int i = 0; i < 20; ++i) {
      gathers.push_back(start_gather(*comm, ragged_chunks(comm->size(), 3000, same)));
      reduces.push_back(start_reduce(*comm, ragged_chunks(comm->size(), 1000, same)));
      sums[i].resize(same() % 2000);
      for (size_t k = 0; k < sums[i].size(); ++k) sums[i][k] = value_of(comm->rank(), k + i);
      requests.push_back(gathers.back().request);
      requests.push_back(reduces.back().request);
      requests.push_back(
          comm->start_all_reduce_sum(sums[i].data(), static_cast<int64_t>(sums[i].size())));
      comm->progress();
    }
    // Every rank waits in an order of its own.
    std::shuffle(requests.begin(), requests.end(), own);
    for (size_t i = 0; i < requests.size(); ++i) {
      if (i % 2 == 0) {
        comm->wait(requests[i]);
      } else {
        while (!comm->test(requests[i])) {
        }
      }
    }
    for (const Gather& gather : gathers) expect_gathered(*comm, gather);
    for (const Reduce& reduce : reduces) expect_reduced(*comm, reduce);
    int64_t wrong = 0;
    for (int i = 0; i < 20; ++i)
      for (size_t k = 0; k < sums[i].size(); ++k) wrong += sums[i][k] != sum_of(*comm, k + i);
    EXPECT_EQ(wrong, 0);
  }
}

TEST(Communicator, ProgressAloneFinishesOperations) {
  const auto comm = make_mpi_communicator();
  std::vector<float> values(50000, 1.0f);
  const auto request = comm->start_all_reduce_sum(values.data(), 50000);
  // Not a word but progress(): the last element gets its sum in the second phase.
  volatile float* last = &values[49999];
  volatile float* first = &values[0];
  const auto size = static_cast<float>(comm->size());
  for (int64_t i = 0; i < 100'000'000 && (*last != size || *first != size); ++i) comm->progress();
  EXPECT_EQ(*last, size);
  comm->wait(request);
  EXPECT_EQ(std::count(values.begin(), values.end(), size), 50000);
}

TEST(Communicator, AWaitInOneGroupMovesTheOthersOn) {
  // Even ranks wait for the sum of all before they enter their group's gather, odd ones after it:
  // works only if waiting in one communicator posts the second phase in the other.
  const auto world = make_mpi_communicator();
  const auto twin = world->split(0, world->rank());
  std::vector<float> values(1000, 2.0f);
  const auto sum = world->start_all_reduce_sum(values.data(), 1000);
  if (world->rank() % 2 == 0) world->wait(sum);
  std::vector<int64_t> begin(twin->size() + 1);
  for (int i = 0; i <= twin->size(); ++i) begin[i] = 100 * i;
  const Gather gather = start_gather(*twin, begin);
  twin->wait(gather.request);
  if (world->rank() % 2 == 1) world->wait(sum);
  expect_gathered(*twin, gather);
  EXPECT_EQ(values[999], 2.0f * static_cast<float>(world->size()));
}

TEST(Communicator, SmallBlockingOperations) {
  const auto comm = make_mpi_communicator();
  const int size = comm->size(), rank = comm->rank();
  std::vector<double> values{double(rank), 2.0, -double(rank)};
  comm->all_reduce_sum(values);
  EXPECT_EQ(values,
            (std::vector<double>{size * (size - 1) / 2.0, 2.0 * size, -size * (size - 1) / 2.0}));
  std::vector<double> largest{double(rank), -double(rank)};
  comm->all_reduce_max(largest);
  EXPECT_EQ(largest, (std::vector<double>{size - 1.0, 0.0}));
  std::vector<int64_t> numbers{int64_t{1} << 60, rank};
  if (rank > 0) numbers[0] = 1;
  comm->all_reduce_sum(numbers);
  EXPECT_EQ(numbers,
            (std::vector<int64_t>{(int64_t{1} << 60) + size - 1, int64_t{size} * (size - 1) / 2}));
  comm->barrier();
  const auto strings = comm->all_gather_strings(std::string(rank * 3, 'a' + rank));
  ASSERT_EQ(static_cast<int>(strings.size()), size);
  for (int i = 0; i < size; ++i) EXPECT_EQ(strings[i], std::string(i * 3, 'a' + i));
}

TEST(Communicator, SplitOrdersByKeyAndLeavesOut) {
  const auto world = make_mpi_communicator();
  const int size = world->size(), rank = world->rank();
  const auto halves = world->split(rank % 2, -rank);
  EXPECT_EQ(halves->size(), (size + 1 - rank % 2) / 2);
  EXPECT_EQ(halves->rank(), halves->size() - 1 - rank / 2);
  const auto some = world->split(rank == 0 ? -1 : 5, rank);
  EXPECT_EQ(some == nullptr, rank == 0);
  if (some) {
    EXPECT_EQ(some->size(), size - 1);
  }
  EXPECT_THROW(world->split_known(size + 1, rank, 0, rank), Error);
}

/// The place of a rank among those that run on a host of the same name, and their number.
std::pair<int, int> place_by_host_name(Communicator& comm) {
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  const std::vector<std::string> hosts = comm.all_gather_strings(host);
  const auto own = hosts.begin() + comm.rank();
  return {static_cast<int>(std::count(hosts.begin(), own, *own)),
          static_cast<int>(std::count(hosts.begin(), hosts.end(), *own))};
}

TEST(Communicator, PlaceOnTheNode) {
  const auto world = make_mpi_communicator();
  const auto expect_place = [](Communicator& comm) {
    EXPECT_EQ(std::pair(comm.local_rank(), comm.local_size()), place_by_host_name(comm));
  };
  expect_place(*world);
  expect_place(*world->split(world->rank() % 2, -world->rank()));
  expect_place(*world->split(0, (world->rank() * 5) % 8));
  EXPECT_EQ(make_single_communicator()->local_size(), 1);
  EXPECT_EQ(make_counting_communicator(8, 5)->local_rank(), 5);
}

TEST(Communicator, WrongUseIsRefused) {
  const auto comm = make_mpi_communicator();
  std::vector<float> values(4);
  EXPECT_THROW(comm->wait(123456789), Error);
  EXPECT_THROW(comm->start_all_reduce_sum(values.data(), -1), Error);
  const std::vector<int64_t> too_many(comm->size() + 2, 0);
  EXPECT_THROW(comm->start_all_gather(values.data(), too_many), Error);
  std::vector<int64_t> falling(comm->size() + 1, 0);
  falling[0] = 1;
  EXPECT_THROW(comm->start_reduce_scatter(values.data(), falling, nullptr), Error);
  const auto request = comm->start_all_reduce_sum(values.data(), 4);
  comm->wait(request);
  EXPECT_THROW(comm->wait(request), Error);  // a handle is used once
}

/// Sets the time limit of waits for one scope.
class TimeLimit {
 public:
  explicit TimeLimit(double seconds) : old_(set_host_timeout(seconds)) {}
  ~TimeLimit() { set_host_timeout(old_); }

 private:
  double old_;
};

TEST(Communicator, EveryWaitEndsAtTheTimeLimitAndNamesWhoIsMissing) {
  const auto comm = make_mpi_communicator();
  if (comm->size() < 2) GTEST_SKIP() << "one rank waits for nobody";
  const int late = comm->size() > 2 ? 1 : 0;  // of the group
  const int first = late == 0 ? 1 : 0;        // the lowest one that waits, which ends
  std::vector<int64_t> numbers(3, 1);
  std::vector<double> values(3, 1);
  std::vector<float> floats(1000, 1);
  const std::map<std::string, std::function<void()>> operations = {
      {"barrier", [&] { comm->barrier(); }},
      {"broadcast", [&] { comm->broadcast(numbers.data(), 24, late); }},
      {"sum of doubles", [&] { comm->all_reduce_sum(values); }},
      {"sum of integers", [&] { comm->all_reduce_sum(numbers); }},
      {"maximum", [&] { comm->all_reduce_max(values); }},
      {"gather of lengths", [&] { comm->all_gather_strings("text"); }},
      {"all-reduce", [&] { comm->wait(comm->start_all_reduce_sum(floats.data(), 1000)); }},
  };
  for (const auto& [name, operation] : operations) {
    comm->barrier();
    std::string message;
    if (comm->rank() == late) {
      usleep(700'000);
    } else if (comm->rank() == first) {
      try {
        const TimeLimit limit(0.2);
        operation();
      } catch (const Error& error) {
        message = error.what();
      }
      const std::string wanted = fmt::format(
          "{}: {} in a group of {} ranks has not finished after 0 s "
          "(parallel.timeout_s): rank {} on ",
          internal::rank_and_host(), name, comm->size(), late);
      EXPECT_EQ(message.rfind(wanted, 0), 0u) << message << " instead of " << wanted;
      EXPECT_EQ(message.find(", rank "), std::string::npos) << message;
      // What it has begun ends in later waits; only the strings themselves are still to be sent.
      if (name == "gather of lengths") {
        std::vector<char> strings(4 * static_cast<size_t>(comm->size()));
        std::vector<int64_t> begin;
        for (int member = 0; member <= comm->size(); ++member) begin.push_back(4 * member);
        comm->all_gather_host(strings.data(), begin);
      }
      continue;
    }
    EXPECT_NO_THROW(operation()) << name;
  }
  comm->barrier();
}

TEST(Communicator, LoneWorkOfARankMayTakeLonger) {
  const auto comm = make_mpi_communicator();
  if (comm->size() < 2) GTEST_SKIP() << "one rank waits for nobody";
  comm->barrier();
  if (comm->rank() == 0) usleep(700'000);
  const TimeLimit limit(comm->rank() == 0 ? 60 : 0.4);
  const LoneWork work;
  EXPECT_NO_THROW(comm->barrier());
}

TEST(Communicator, BroadcastOfAnySizeFromAnyRank) {
  for (const int64_t limit : {int64_t{1000}, kLargestMpiMessage}) {
    const auto comm = make_mpi_communicator(limit);
    for (const int64_t n : {0, 1, 7, 16384, 16385, 100000})
      for (int root = 0; root < comm->size(); ++root) {
        std::vector<uint8_t> data(n + 1, 0xEE);
        if (comm->rank() == root)
          for (int64_t i = 0; i < n; ++i) data[i] = byte_of(root, i);
        comm->broadcast(data.data(), n, root);
        int64_t wrong = data[n] != 0xEE;
        for (int64_t i = 0; i < n; ++i) wrong += data[i] != byte_of(root, i);
        EXPECT_EQ(wrong, 0) << n << " bytes from " << root;
      }
  }
}

TEST(Communicator, MpiErrorsNameRankHostAndOperation) {
  const auto comm = make_mpi_communicator();
  try {
    int value = 0;
    LN_MPI(MPI_Send(&value, 1, MPI_INT, 1 << 20, 0, MPI_COMM_WORLD));  // no such rank
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    const std::string what = e.what();
    EXPECT_NE(what.find(fmt::format("rank {} on ", comm->rank())), std::string::npos) << what;
    EXPECT_NE(what.find("MPI_Send"), std::string::npos) << what;
    // Open MPI's words, MPICH's.
    EXPECT_TRUE(what.find("MPI_ERR_RANK") != std::string::npos ||
                what.find("Invalid rank") != std::string::npos)
        << what;
    EXPECT_EQ(what.find('\n'), std::string::npos) << what;
  }
}

TEST(Communicator, SingleAndCountingAgreeOnTheBytes) {
  const auto single = make_single_communicator();
  float value = 3;
  single->wait(single->start_all_reduce_sum(&value, 1));
  EXPECT_EQ(value, 3);
  EXPECT_EQ(single->bytes_sent(), 0);
  EXPECT_EQ(single->split(-1, 0), nullptr);

  // The counting transport counts what this job sends, and touches no memory.
  const auto comm = make_mpi_communicator();
  const auto counting = make_counting_communicator(comm->size(), comm->rank());
  auto* nowhere = reinterpret_cast<float*>(uintptr_t{256});
  std::mt19937_64 random(9);
  for (int i = 0; i < 5; ++i) {
    const auto begin = ragged_chunks(comm->size(), 500, random);
    const Gather gather = start_gather(*comm, begin);
    comm->wait(gather.request);
    counting->wait(counting->start_all_gather(nowhere, begin));
    const Reduce reduce = start_reduce(*comm, begin);
    comm->wait(reduce.request);
    counting->wait(counting->start_reduce_scatter(nowhere, begin, nowhere));
    std::vector<float> values(random() % 100);
    comm->wait(comm->start_all_reduce_sum(values.data(), static_cast<int64_t>(values.size())));
    counting->wait(counting->start_all_reduce_sum(nowhere, static_cast<int64_t>(values.size())));
  }
  EXPECT_EQ(counting->bytes_sent(), comm->bytes_sent());
  EXPECT_THROW(counting->split(0, 0), Error);
  const auto group = counting->split_known(300, 299, 4, 0);
  EXPECT_EQ(group->size(), 300);
  EXPECT_EQ(group->rank(), 299);
  EXPECT_EQ(counting->split_known(0, 0, -1, 0), nullptr);
}

TEST(Mesh, EveryFactorisationAndItsErrors) {
  const int size = make_mpi_communicator()->size();
  for (int sequence = 1; sequence <= size; ++sequence) {
    if (size % sequence != 0) {
      EXPECT_THROW(make_mesh(make_mpi_communicator(), sequence, 0), Error);
      continue;
    }
    for (int data : {0, size / sequence}) {
      const Mesh mesh = make_mesh(make_mpi_communicator(), sequence, data);
      EXPECT_EQ(mesh.sequence_ranks(), sequence);
      EXPECT_EQ(mesh.replicas, size / sequence);
      EXPECT_EQ(mesh.replica * sequence + mesh.sequence_rank(), mesh.world->rank());
      // Neighbours in the group are neighbours in the job.
      std::vector<int64_t> sum{mesh.world->rank()};
      mesh.sequence->all_reduce_sum(sum);
      const int64_t first = int64_t{mesh.replica} * sequence;
      EXPECT_EQ(sum[0], first * sequence + sequence * (sequence - 1) / 2);
    }
  }
  EXPECT_EQ(make_mesh(make_mpi_communicator(), 0, 0).sequence_ranks(), size);
  EXPECT_EQ(make_mesh(make_mpi_communicator(), 0, size).sequence_ranks(), 1);
  for (auto [s, d] : {std::pair<int64_t, int64_t>{size, 2},
                      {-1, 0},
                      {0, -1},
                      {size + 1, 0},
                      {int64_t{1} << 62, 4}}) {
    try {
      make_mesh(make_mpi_communicator(), s, d);
      ADD_FAILURE() << s << " x " << d;
    } catch (const Error& e) {
      const std::string what = e.what();
      EXPECT_NE(what.find("parallel.sequence_ranks"), std::string::npos);
      EXPECT_NE(what.find("parallel.data_ranks"), std::string::npos);
      EXPECT_NE(what.find(fmt::format("{} ranks", size)), std::string::npos);
    }
  }
  const Mesh planned = make_mesh(make_counting_communicator(512, 77), 64, 0);
  EXPECT_EQ(planned.sequence_ranks(), 64);
  EXPECT_EQ(planned.sequence_rank(), 13);
  EXPECT_EQ(planned.replica, 1);
}

TEST(BenchCollectives, ReportsEveryOperationAndSize) {
  const auto comm = make_mpi_communicator();
  Context context;
  const CollectiveReport report = bench_collectives(
      context, *comm, {.min_bytes = 64 << 10, .max_bytes = 256 << 10, .repetitions = 3});
  EXPECT_EQ(report.ranks, comm->size());
  EXPECT_GT(report.copy_bandwidth, 0);
  ASSERT_EQ(report.results.size(), 9u);
  for (const CollectiveResult& r : report.results) {
    EXPECT_GT(r.seconds, 0) << r.operation;
    EXPECT_NEAR(r.algorithm_bandwidth * r.seconds, static_cast<double>(r.bytes), 1) << r.operation;
    const double n = comm->size();
    const double factor = (r.operation == "all_reduce" ? 2 : 1) * (n - 1) / n;
    EXPECT_DOUBLE_EQ(r.bus_bandwidth, r.algorithm_bandwidth * factor) << r.operation;
  }
}

}  // namespace
}  // namespace longnet::test
