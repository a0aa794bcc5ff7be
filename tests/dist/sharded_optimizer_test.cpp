// The sharded optimizer against the one that is not: limits, sums, gathers, whole training steps
// and checkpoints must agree to the last bit, and bytes and memory with their formulas. 1, 2, 4, 8
// ranks.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <random>

#include "support/compare.h"
#include "support/temporary_folder.h"
#include "support/training_case.h"
#include "train/agreement.h"
#include "train/checkpoint.h"
#include "train/sharded_moments.h"

namespace longnet::test {
namespace {

TensorView flat_view(std::vector<float>& values) {
  return TensorView(values.data(), DType::kF32, {static_cast<int64_t>(values.size())});
}

bool same_bits(const float* a, const float* b, int64_t n) {
  return n == 0 || std::memcmp(a, b, n * sizeof(float)) == 0;
}

/// Limits on multiples of 64, some ranks with nothing; the same on every rank.
std::vector<int64_t> random_limits(int64_t n, int ranks, std::mt19937_64& random) {
  std::vector<int64_t> begin{0, n};
  while (static_cast<int>(begin.size()) < ranks + 1)
    begin.push_back(random() % 3 == 0 ? begin[random() % begin.size()]
                                      : static_cast<int64_t>(random() % (n / 64 + 1)) * 64);
  std::sort(begin.begin(), begin.end());
  return begin;
}

TEST(Shards, LimitsAreBalancedAndAligned) {
  for (int64_t n : {0, 1, 63, 64, 65, 640, 6400, 65 * 64, 1 << 20})
    for (int ranks : {1, 2, 3, 8, 100}) {
      const std::vector<int64_t> begin = shard_limits(n, ranks);
      ASSERT_EQ(begin.size(), size_t(ranks) + 1);
      EXPECT_EQ(begin.front(), 0);
      EXPECT_EQ(begin.back(), n);
      int64_t smallest = n, largest = 0;
      for (int m = 0; m < ranks; ++m) {
        EXPECT_TRUE(begin[m] % 64 == 0 || begin[m] == n) << n << " " << ranks;
        smallest = std::min(smallest, begin[m + 1] - begin[m]);
        largest = std::max(largest, begin[m + 1] - begin[m]);
      }
      EXPECT_GE(smallest, 0);
      EXPECT_LE(largest - smallest, 64) << n << " over " << ranks;
    }
  EXPECT_EQ(shard_limits(640, 4), (std::vector<int64_t>{0, 192, 384, 512, 640}));
  EXPECT_EQ(shard_limits(128, 4), (std::vector<int64_t>{0, 64, 128, 128, 128}));
}

TEST(Shards, OwnedSumsHaveTheBitsOfAllReduceAndTheBytesOfTheFormula) {
  const auto world = make_mpi_communicator();
  const int size = world->size(), rank = world->rank();
  std::mt19937_64 shared(7), own(70 + rank);
  std::normal_distribution<float> normal;
  for (int64_t n : {64, 600, 40000})
    for (int64_t bucket : {n > 600 ? 32768 : 256, 16 << 20})
      for (int round = 0; round < 2; ++round) {
        const std::vector<int64_t> begin =
            round == 0 ? shard_limits(n, size) : random_limits(n, size, shared);
        std::vector<float> mine(n);
        for (float& v : mine) v = normal(own);
        std::vector<float> all = mine, sharded = mine;
        GradientSum every(*world, flat_view(all), bucket);
        GradientSum owned(*world, flat_view(sharded), bucket, begin);
        for (int64_t at = 0; at < n;) {
          const int64_t end = std::min<int64_t>(n, at + 1 + int64_t(shared() % (n / 3)));
          every.ready(at, end);
          owned.ready(at, end);
          owned.progress();
          at = end;
        }
        every.wait();
        owned.wait();
        const int64_t first = begin[rank], count = begin[rank + 1] - first;
        EXPECT_TRUE(same_bits(sharded.data() + first, all.data() + first, count)) << n;
        EXPECT_TRUE(same_bits(sharded.data(), mine.data(), first)) << "others' are left alone";
        EXPECT_EQ(owned.bytes_sent(), size == 1 ? 0 : 4 * (n - count));
        EXPECT_LE(
            owned.staging_bytes(),
            4 * 4 * (size - 1) * std::max(bucket / 4 / size, std::min<int64_t>(bucket / 4, 16384)));
        ParameterGather gather(*world, flat_view(sharded), begin, bucket);
        for (int twice = 0; twice < 2; ++twice) {
          for (float& v : sharded) v = -1.0f;
          for (int64_t at = first; at < first + count;) {
            const int64_t end = std::min(first + count, at + 1 + int64_t(own() % 5000));
            std::copy(all.begin() + at, all.begin() + end, sharded.begin() + at);
            gather.ready(end);
            at = end;
          }
          gather.ready(first + count);
          gather.wait();
          EXPECT_TRUE(same_bits(sharded.data(), all.data(), n)) << n << " " << bucket;
        }
        EXPECT_EQ(gather.bytes_sent(), 2 * 4 * (size - 1) * count);
        // Over all ranks and for one round: what the all-reduce sends.
        std::array<int64_t, 2> sums{owned.bytes_sent() + gather.bytes_sent() / 2,
                                    every.bytes_sent()};
        world->all_reduce_sum(std::span<int64_t>(sums));
        EXPECT_EQ(sums[0], sums[1]);
        EXPECT_EQ(sums[0], 8 * (size - 1) * n);
      }
}

/// Optimizers on given gradients: a large tensor that cuts blocks of the sums, small ones that do
/// not begin on 64, and limits that leave ranks with less than a tensor or with nothing.
TEST(Shards, OptimizerUpdatesAreTheSameBitsForAnyLimits) {
  const auto world = make_mpi_communicator();
  const int size = world->size(), rank = world->rank();
  ModelConfig model;
  model.vocab_size = 1500;
  model.dim = 30;  // matrices of 900 elements: k and v begin inside of a cell
  model.layers = 2;
  model.heads = 3;
  model.ffn_dim = 40;
  const ParameterLayout layout(model);
  const int64_t n = layout.elements();
  ASSERT_GT(layout.find("embed_tokens.weight").elements, 2 * kSumBlock);
  const ParameterInfo& unaligned = layout.find("layers.1.self_attn.k_proj.weight");
  ASSERT_NE(unaligned.offset % kSumCell, 0);
  std::mt19937_64 shared(9);
  for (const char* name : {"adamw", "stable_adamw"})
    for (int round = 0; round < 3; ++round) {
      std::vector<int64_t> begin =
          round == 0 ? shard_limits(n, size) : random_limits(n, size, shared);
      if (round == 1)  // all cuts but the ends in one tensor that begins inside of a cell
        for (int m = 1; m < size; ++m) begin[m] = (unaligned.offset / kSumCell + m) * kSumCell;
      OptimizerConfig config;
      config.name = name;
      Context context;
      Arena whole_arena("whole"), part_arena("part");
      std::vector<float> w[2], g(n, 0.0f);
      w[0].assign(n, 0.0f);
      for (const ParameterInfo& info : layout.parameters()) {
        const std::vector<float> values = random_values(info.elements, info.offset);
        std::copy(values.begin(), values.end(), w[0].begin() + info.offset);
      }
      w[1] = w[0];
      ParameterGather gather(*world, flat_view(w[1]), begin, 4096);
      Optimizer whole(context, config, layout, flat_view(w[0]), flat_view(g), whole_arena);
      Optimizer part(context, config, layout, flat_view(w[1]), flat_view(g), part_arena,
                     {world.get(), begin, gather.piece_elements()});
      for (int64_t step = 1; step <= 4; ++step) {
        for (const ParameterInfo& info : layout.parameters()) {
          const std::vector<float> values =
              random_values(info.elements, info.offset + step, step % 2 == 0 ? 40.0f : 0.1f);
          std::copy(values.begin(), values.end(), g.begin() + info.offset);
        }
        const double squares = whole.gradient_sum_of_squares();
        EXPECT_GT(squares, 0);
        EXPECT_EQ(part.gradient_sum_of_squares(), squares) << name << " step " << step;
        whole.update(step, 0.01, 0.7);
        part.update(step, 0.01, 0.7, [&](int64_t end) { gather.ready(end); });
        gather.wait();
        EXPECT_TRUE(same_bits(w[0].data(), w[1].data(), n)) << name << " step " << step;
      }
      const int64_t count = begin[rank + 1] - begin[rank];
      EXPECT_EQ(part.first_moment().elements(), count);
      EXPECT_TRUE(
          same_bits(part.first_moment().f32(), whole.first_moment().f32() + begin[rank], count));
      EXPECT_TRUE(
          same_bits(part.second_moment().f32(), whole.second_moment().f32() + begin[rank], count));
    }
}

constexpr int64_t kAccumulation = 2;

/// A run on the golden data, over the ranks of `world`.
struct TrainingRun {
  TrainingRun(std::unique_ptr<Communicator> world, const std::string& optimizer, bool sharded,
              int64_t data_ranks = 1)
      : file(golden_path("training-adamw")),
        config(training_config(file)),
        tokens(file.integers("tokens")) {
    config.train.batch_size = data_ranks > 1 ? 1 : config.train.batch_size / kAccumulation;
    config.train.accumulation = data_ranks > 1 ? 1 : kAccumulation;
    config.optimizer.name = optimizer;
    config.parallel.shard_optimizer = sharded;
    mesh = make_mesh(std::move(world), 0, data_ranks);
    learner = std::make_unique<Learner>(context, config, mesh);
    set_parameters(*learner, file);
  }
  void train(int64_t first, int64_t last) {
    for (int64_t step = first; step < last; ++step) {
      std::vector<MicroBatch> batches;
      for (int64_t micro = 0; micro < config.train.accumulation; ++micro)
        batches.push_back(
            golden_batch(tokens, file.entry("tokens").shape, step,
                         (micro * mesh.replicas + mesh.replica) * config.train.batch_size,
                         config.train.batch_size, learner->plan()));
      results.push_back(learner->train_step(batches, step + 1));
    }
  }
  std::vector<float> parameters() const {
    const float* values = learner->parameters().f32();
    return {values, values + learner->layout().elements()};
  }
  std::string save(const std::string& folder, int64_t step) {
    std::string path;
    learner->with_tensors_on_root([&](const TrainingTensors& tensors) {
      save_checkpoint(folder, config, learner->layout(), tensors,
                      {.step = step, .tokens_seen = 0, .data = {}}, 0);
    });
    return folder + fmt::format("/step-{:08}", step);
  }
  void load(const std::string& path) {
    for (const ParameterInfo& info : learner->layout().parameters())  // padding stays zero
      std::fill_n(learner->parameters().f32() + info.offset, info.elements, 7.0f);
    learner->with_tensors_on_root([&](const TrainingTensors& tensors) {
      load_tensors(open_checkpoint(path), learner->layout(), tensors);
    });
    learner->broadcast_tensors();
  }

  SafetensorsFile file;
  Config config;
  std::vector<int64_t> tokens;
  Context context;
  Mesh mesh;
  std::unique_ptr<Learner> learner;
  std::vector<StepResult> results;
};

void expect_same_results(const TrainingRun& a, const TrainingRun& b, size_t skip_a = 0) {
  ASSERT_EQ(a.results.size() - skip_a, b.results.size());
  for (size_t i = 0; i < b.results.size(); ++i) {
    EXPECT_EQ(a.results[i + skip_a].loss, b.results[i].loss) << "step " << i;
    EXPECT_EQ(a.results[i + skip_a].gradient_norm, b.results[i].gradient_norm) << "step " << i;
  }
  EXPECT_EQ(a.parameters(), b.parameters());
}

TEST(Shards, TrainingIsTheSameBitsWithItsBytesAndMemory) {
  for (const char* optimizer : {"adamw", "stable_adamw"})
    for (int64_t data_ranks : {1, 2}) {
      if (make_mpi_communicator()->size() % data_ranks != 0) continue;
      TrainingRun whole(make_mpi_communicator(), optimizer, false, data_ranks);
      TrainingRun sharded(make_mpi_communicator(), optimizer, true, data_ranks);
      whole.train(0, 6);
      sharded.train(0, 6);
      expect_same_results(whole, sharded);
      int64_t clipped = 0;
      for (const StepResult& r : whole.results)
        clipped += r.gradient_norm > whole.config.optimizer.clip_norm;
      EXPECT_GT(clipped, 0);

      const int64_t ranks = whole.mesh.world->size(), n = whole.learner->layout().elements();
      const ParameterRange own = sharded.learner->optimizer().range();
      const int64_t count = own.end - own.begin;
      EXPECT_EQ(sharded.learner->gradient_bytes_sent(), ranks == 1 ? 0 : 6 * 4 * (n - count));
      EXPECT_EQ(sharded.learner->parameter_bytes_sent(), 6 * 4 * (ranks - 1) * count);
      EXPECT_EQ(whole.learner->parameter_bytes_sent(), 0);
      std::array<int64_t, 2> sent{
          whole.learner->gradient_bytes_sent(),
          sharded.learner->gradient_bytes_sent() + sharded.learner->parameter_bytes_sent()};
      whole.mesh.world->all_reduce_sum(std::span<int64_t>(sent));
      EXPECT_EQ(sent[0], sent[1]);
      EXPECT_EQ(sent[0], 6 * 8 * (ranks - 1) * n);
      const auto optimizer_bytes = [](const TrainingRun& run) {
        for (const auto& [purpose, bytes] : run.learner->memory())
          if (purpose == "optimizer") return bytes;
        return int64_t{-1};
      };
      EXPECT_EQ(optimizer_bytes(whole), 2 * 4 * n);
      EXPECT_EQ(optimizer_bytes(sharded), 2 * 4 * count);
      EXPECT_LE(std::abs(count * ranks - n), 64 * ranks);
    }
}

/// A folder that rank 0 made, its name on all ranks.
struct SharedFolder {
  explicit SharedFolder(Communicator& world) {
    if (world.rank() == 0) folder = std::make_unique<TemporaryFolder>();
    path = world.all_gather_strings(folder ? folder->path() : "")[0];
  }
  std::unique_ptr<TemporaryFolder> folder;
  std::string path;
};

TEST(Shards, CheckpointsResumeBitForBitInEitherMode) {
  const auto world = make_mpi_communicator();
  for (const char* optimizer : {"adamw", "stable_adamw"}) {
    TrainingRun straight(make_mpi_communicator(), optimizer, false);
    straight.train(0, 4);
    for (const auto& [before, after] : {std::pair{false, true}, {true, false}, {true, true}}) {
      SharedFolder folder(*world);
      TrainingRun first(make_mpi_communicator(), optimizer, before);
      first.train(0, 2);
      const std::string path = first.save(folder.path, 2);
      TrainingRun second(make_mpi_communicator(), optimizer, after);
      second.load(path);
      second.train(2, 4);
      expect_same_results(straight, second, 2);
      world->barrier();
    }
  }
}

TEST(Shards, CheckpointsMoveBetweenRankCounts) {
  const auto world = make_mpi_communicator();
  const int size = world->size();
  SharedFolder folder(*world);
  TrainingRun all(make_mpi_communicator(), "stable_adamw", true);
  all.train(0, 3);
  std::string path = all.save(folder.path, 3);
  // On ever fewer ranks, in turn with and without shards: what is loaded and saved again is the
  // same file, byte for byte.
  int64_t step = 3;
  bool sharded = false;
  for (int ranks = size; ranks >= 1; ranks /= 2) {
    ++step;
    auto group = world->split(world->rank() < ranks ? 0 : -1, world->rank());
    if (group) {
      TrainingRun fewer(std::move(group), "stable_adamw", sharded);
      fewer.load(path);
      fewer.save(folder.path, step);
      EXPECT_EQ(fewer.parameters(), all.parameters());
      fewer.train(3, 5);
      EXPECT_GT(fewer.results[1].loss, 0);
    }
    world->barrier();
    const std::string next = folder.path + fmt::format("/step-{:08}", step);
    if (world->rank() == 0) {
      EXPECT_EQ(read_whole_file(next + "/optimizer.safetensors"),
                read_whole_file(path + "/optimizer.safetensors"));
    }
    path = next;
    sharded = !sharded;
  }
  // And from the last one (of one rank) to all ranks, sharded again.
  TrainingRun back(make_mpi_communicator(), "stable_adamw", true);
  back.load(path);
  back.train(3, 5);
  all.train(3, 5);
  expect_same_results(all, back, 3);
  world->barrier();
}

/// More elements than one transfer carries: pieces end inside of tensors and of ranks' ranges.
TEST(Shards, MomentsTravelInPieces) {
  const auto world = make_mpi_communicator();
  ModelConfig model;
  model.vocab_size = 41000;
  model.dim = 56;
  model.layers = 1;
  model.heads = 7;
  model.ffn_dim = 9;
  const ParameterLayout layout(model);
  const int64_t n = layout.elements();
  ASSERT_GT(n, 4 << 20);
  std::vector<float> nothing(n, 0.0f);
  Context context;
  Arena arena("moments");
  const std::vector<int64_t> begin = shard_limits(n, world->size());
  Optimizer optimizer(context, {}, layout, flat_view(nothing), flat_view(nothing), arena,
                      {world.get(), begin, 1 << 20});
  ShardedMoments moments(context, *world, optimizer, begin);
  const auto value = [](int64_t which, int64_t i) {
    return static_cast<float>((i * 7 + which * 13) % 16777213 + 1);
  };
  const auto whole = [&](const ParameterInfo& info, int64_t which) {
    std::vector<float> values(info.elements);
    for (int64_t i = 0; i < info.elements; ++i) values[i] = value(which, info.offset + i);
    return values;
  };
  moments.run_on_root([&] {
    for (const auto which : {MomentPieces::kFirst, MomentPieces::kSecond})
      for (const ParameterInfo& info : layout.parameters())
        moments.set(which, info.offset, whole(info, which));
  });
  std::vector<float> expected(n, 0.0f);  // padding stays zero
  for (const auto which : {MomentPieces::kFirst, MomentPieces::kSecond}) {
    for (const ParameterInfo& info : layout.parameters()) {
      const std::vector<float> values = whole(info, which);
      std::copy(values.begin(), values.end(), expected.begin() + info.offset);
    }
    const ParameterRange own = optimizer.range();
    const TensorView& mine =
        which == MomentPieces::kFirst ? optimizer.first_moment() : optimizer.second_moment();
    EXPECT_TRUE(same_bits(mine.f32(), expected.data() + own.begin, own.end - own.begin));
  }
  moments.run_on_root([&] {
    std::mt19937_64 random(3);
    for (const auto which : {MomentPieces::kSecond, MomentPieces::kFirst}) {
      for (const ParameterInfo& info : layout.parameters()) {
        std::vector<float> values(info.elements);
        moments.get(which, info.offset, values);
        EXPECT_EQ(values, whole(info, which)) << info.name;
      }
      for (int i = 0; i < 5; ++i) {  // in any order, too
        std::vector<float> values(random() % 1000 + 1);
        const int64_t at =
            static_cast<int64_t>(random() % (layout.parameters()[0].elements - 1000));
        moments.get(which, at, values);
        EXPECT_EQ(values[0], value(which, at));
        EXPECT_EQ(values.back(), value(which, at + static_cast<int64_t>(values.size()) - 1));
      }
    }
    // What is set is there for the next get, also of the piece that was just read.
    moments.set(MomentPieces::kFirst, 5, std::vector<float>{-1.0f});
    std::vector<float> one(1);
    moments.get(MomentPieces::kFirst, 5, one);
    EXPECT_EQ(one[0], -1.0f);
  });
}

TEST(Shards, AFailedSaveOrLoadEndsOnAllRanks) {
  const auto world = make_mpi_communicator();
  TrainingRun run(make_mpi_communicator(), "adamw", true);
  EXPECT_THROW(run.save("/dev/null/inside", 1), AgreedError);
  EXPECT_THROW(run.load("/dev/null/inside/step-00000001"), AgreedError);
  SharedFolder folder(*world);
  const std::string path = run.save(folder.path, 1);
  // Damage that is found between two transfers: the second moments of the last tensor.
  if (world->rank() == 0) {
    const ParameterLayout& layout = run.learner->layout();
    std::vector<float> good(layout.elements(), 0.0f), bad = good;
    bad[layout.parameters().back().offset] = NAN;
    std::vector<SafetensorsTensor> tensors;
    for (const char* prefix : {"first_moment.", "second_moment."})
      for (const ParameterInfo& info : layout.parameters())
        tensors.push_back({prefix + info.name,
                           DType::kF32,
                           info.shape,
                           (prefix[0] == 's' ? bad : good).data() + info.offset,
                           {}});
    write_safetensors(path + "/optimizer.safetensors", tensors);
  }
  world->barrier();
  Checkpoint checkpoint;
  checkpoint.path = path;
  try {
    run.learner->with_tensors_on_root([&](const TrainingTensors& tensors) {
      load_tensors(checkpoint, run.learner->layout(), tensors);
    });
    ADD_FAILURE() << "loaded";
  } catch (const AgreedError& error) {
    if (world->rank() == 0) {
      EXPECT_NE(std::string(error.what()).find("non-finite"), std::string::npos) << error.what();
    }
  }
  run.train(0, 1);  // still in step with each other
  world->barrier();
}

TEST(Shards, StopsEverywhereBeforeTheWeightsChange) {
  // Not a number in one rank's gradients only, of an element that one other rank owns.
  TrainingRun run(make_mpi_communicator(), "stable_adamw", true);
  run.train(0, 2);
  const std::vector<float> before = run.parameters();
  const int64_t place = run.learner->layout().find("layers.0.ffn.fc1.weight").offset;
  run.learner->parameters().f32()[place] = NAN;
  EXPECT_THROW(run.train(2, 3), NonFiniteError);
  run.learner->parameters().f32()[place] = before[place];
  EXPECT_EQ(run.parameters(), before);
}

}  // namespace
}  // namespace longnet::test
