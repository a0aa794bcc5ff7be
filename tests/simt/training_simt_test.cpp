// The whole Learner on the CUDA kernels under the emulator: its orchestration is the GPU's, its
// matrix products and cuDNN's attention are stand-ins. "Short" cases run under ASan too.
#include <gtest/gtest.h>

#include "kernels/attention/attention_native.h"
#include "model/generation.h"
#include "simt/device_runtime_emulated.h"
#include "simt/device_values.h"
#include "simt/emulator.h"
#include "simt/log_text.h"
#include "simt/training_on_device.h"
#include "support/compare.h"
#include "support/temporary_folder.h"
#include "train/backend.h"
#include "train/trainer.h"

namespace longnet::simt_test {
namespace {

using test::golden_path;
using test::training_config;
using test::TrainingOnDevice;

const char* kGolden = "training-adamw";

Config golden_config(const SafetensorsFile& file, const std::string& dtype = "f32") {
  Config config = training_config(file);
  config.run.dtype = dtype;
  return config;
}

TEST(TrainingSimt, FollowsTheGoldenTrajectory) {
  const SafetensorsFile file(golden_path(kGolden));
  Config config = golden_config(file);
  config.run.attention = "plain";
  TrainingOnDevice gpu(kGpu, file, config);
  gpu.start_from(file);
  const std::vector<float> losses = file.floats("losses"), norms = file.floats("grad_norms");
  const std::vector<StepResult> results = gpu.train(0, config.train.steps);
  double worst = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    EXPECT_NEAR(results[i].loss, losses[i], 1e-4) << "step " << i + 1;
    EXPECT_NEAR(results[i].gradient_norm, norms[i], 2e-4 * norms[i]) << "step " << i + 1;
    worst = std::max(worst, std::abs(results[i].loss - losses[i]));
  }
  printf("  %zu steps on the emulated GPU: largest loss difference %.2g nats\n", results.size(),
         worst);
}

/// Two layers of width 64 in bf16: heads of 32, a branch with gaps, tails of tiles; an odd
/// vocabulary, for which a GPU leaves room between rows of logits.
Config small_config(const SafetensorsFile& file, const std::string& dtype,
                    const std::string& attention) {
  Config config = golden_config(file, dtype);
  config.model.dim = 64;
  config.model.heads = 2;
  config.model.ffn_dim = 96;
  config.model.vocab_size = 261;
  config.model.branches = {{16, 1}, {64, 2}};
  config.model.qk_norm = true;
  config.run.attention = attention;
  return config;
}

double norm(const std::vector<float>& a) {
  double sum = 0;
  for (const float x : a) sum += double(x) * x;
  return std::sqrt(sum);
}
double distance(const std::vector<float>& a, std::vector<float> b) {
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < b.size(); ++i) b[i] -= a[i];
  return norm(b);
}

/// Two heads of 64, which native attention takes; a dilated branch, and layers computed again.
Config native_config(const SafetensorsFile& file, const std::string& dtype,
                     const std::string& attention) {
  Config config = small_config(file, dtype, attention);
  config.model.dim = 128;
  config.model.ffn_dim = 192;
  config.train.recompute = "layer";
  return config;
}

using ConfigOf = Config (*)(const SafetensorsFile&, const std::string& dtype,
                            const std::string& attention);

/// Three steps in bf16 on the GPU beside the CPU's. Both round at the same places numbers that
/// differ in the order of float sums, or (cuDNN) round a branch's result once more. Were all their
/// roundings different ones, they would lie sqrt(2) times as far from each other as either from
/// float32.
void expect_as_close_to_the_cpu_as_roundings_allow(ConfigOf config,
                                                   std::initializer_list<const char*> choices) {
  const SafetensorsFile file(golden_path(kGolden));
  const Device cpu_device;
  TrainingOnDevice exact(cpu_device, file, config(file, "f32", "auto"));
  TrainingOnDevice cpu(cpu_device, file, config(file, "bf16", "auto"));
  for (TrainingOnDevice* run : {&exact, &cpu}) run->learner.initialise();
  const std::vector<float> start = cpu.parameters();
  exact.train(0, 1);
  std::vector<StepResult> expected = cpu.train(0, 1);
  const std::vector<float> gradients = cpu.gradients();
  const double rounding = distance(gradients, exact.gradients());
  const std::vector<StepResult> later = cpu.train(1, 2);
  expected.insert(expected.end(), later.begin(), later.end());
  // The libraries' own kernels round elsewhere than their stand-ins.
  const double tolerance = simt::emulated() ? 1 : 2;
  for (const char* attention : choices) {
    TrainingOnDevice gpu(kGpu, file, config(file, "bf16", attention));
    gpu.learner.initialise();
    EXPECT_EQ(gpu.parameters(), start);
    std::vector<StepResult> results;
    try {
      results = gpu.train(0, 1);
    } catch (const Error& error) {
      const bool refused = std::string(error.what()).find("run.attention=cudnn: ") == 0;
      if (simt::emulated() || !refused) throw;
      GTEST_SKIP() << error.what();  // not every cuDNN and GPU takes heads of 32
    }
    const double apart = distance(gradients, gpu.gradients());
    EXPECT_LE(apart, tolerance * std::sqrt(2.0) * rounding) << attention;
    const std::vector<StepResult> rest = gpu.train(1, 2);
    results.insert(results.end(), rest.begin(), rest.end());
    for (size_t i = 0; i < results.size(); ++i)
      EXPECT_NEAR(results[i].loss, expected[i].loss, tolerance * 0.01)
          << attention << " step " << i + 1;
    printf("  %s: gradients %.2g of their norm from the CPU's, those %.2g from float32\n",
           attention, apart / norm(gradients), rounding / norm(gradients));
  }
}

TEST(TrainingSimt, Bf16IsAsCloseToTheCpuAsRoundingsAllow) {
  expect_as_close_to_the_cpu_as_roundings_allow(small_config, {"plain", "cudnn"});
}

TEST(TrainingSimt, Bf16OfNativeAttentionIsAsCloseToTheCpu) {
  const LogText log;
  expect_as_close_to_the_cpu_as_roundings_allow(native_config, {"native"});
  EXPECT_EQ(log.text(),
            "attention of branch (16, 1): native; as run.attention asks\n"
            "attention of branch (64, 2): native; as run.attention asks\n");
}

TEST(TrainingSimt, Bf16OfNativeAttentionThatAutoTakesIsAsCloseToTheCpu) {
  const simt::NoCudnn absent("not here");
  const LogText log;
  expect_as_close_to_the_cpu_as_roundings_allow(native_config, {"auto"});
  EXPECT_EQ(log.text(),
            "attention of branch (16, 1): native; cudnn: not here\n"
            "attention of branch (64, 2): native; cudnn: not here\n");
}

// As on a GPU of 8.6 or 8.9 with larger heads: room for the forward and not for the backward.
TEST(TrainingSimt, AutoLeavesABackwardThatHasNoSharedMemoryToPlain) {
  const simt::NoCudnn absent("not here");
  const int64_t wanted = cuda::native_backward_shared_bytes(64);
  const simt::OtherGpu small({.shared_bytes = wanted - 1});
  const LogText log;
  expect_as_close_to_the_cpu_as_roundings_allow(native_config, {"auto"});
  const std::string text = log.text();
  for (const char* branch : {"(16, 1)", "(64, 2)"}) {
    EXPECT_NE(text.find(fmt::format("attention of branch {}: native;", branch)), std::string::npos)
        << text;
    EXPECT_NE(text.find(fmt::format("attention of branch {}, backward: plain; cudnn: not here; "
                                    "native: D 64 takes {} bytes of shared memory per block, this "
                                    "GPU has {}\n",
                                    branch, wanted, wanted - 1)),
              std::string::npos)
        << text;
  }
}

TEST(TrainingSimtShort, RecomputationChangesNoBit) {
  const SafetensorsFile file(golden_path(kGolden));
  Config config = small_config(file, "bf16", "plain");
  TrainingOnDevice kept(kGpu, file, config);
  config.train.recompute = "layer";
  TrainingOnDevice again(kGpu, file, config);
  for (TrainingOnDevice* run : {&kept, &again}) {
    run->learner.initialise();
    run->train(0, 2);
  }
  EXPECT_EQ(kept.parameters(), again.parameters());
}

TEST(TrainingSimtShort, AStepTakesNoMemory) {
  const SafetensorsFile file(golden_path(kGolden));
  for (const char* attention : {"plain", "auto"}) {
    TrainingOnDevice gpu(kGpu, file, small_config(file, "bf16", attention));
    gpu.learner.initialise();
    gpu.train(0, 1);
    const simt::RuntimeCalls before = simt::runtime_calls();
    gpu.train(1, 2);
    const simt::RuntimeCalls after = simt::runtime_calls();
    EXPECT_EQ(after.allocations, before.allocations) << attention;
    EXPECT_EQ(after.host_allocations, before.host_allocations) << attention;
    EXPECT_EQ(after.streams, before.streams) << attention;
  }
}

TEST(TrainingSimt, TooLittleMemoryIsSaidInOneLine) {
  const SafetensorsFile file(golden_path(kGolden));
  Config config = golden_config(file);
  const simt::Capacity small(int64_t{1} << 20);
  try {
    TrainingOnDevice gpu(kGpu, file, config);
    FAIL() << "did not stop";
  } catch (const Error& error) {
    const std::string text = error.what();
    for (const char* word :
         {"out of GPU memory", "parameters ", "gradients ", "optimizer ", "activations ",
          "workspace ", "cuda:0 has 1048576 of 1048576 bytes free", "train.recompute=layer"})
      EXPECT_NE(text.find(word), std::string::npos) << word << ": " << text;
    EXPECT_EQ(text.find('\n'), std::string::npos);
  }
}

TEST(TrainingSimt, AnOldGpuIsRefusedInOneLine) {
  const auto world = make_single_communicator();
  EXPECT_EQ(device_of_rank(*world, "cuda"), kGpu);
  const simt::OtherGpu old({.name = "Tesla T4", .major = 7, .minor = 5});
  try {
    device_of_rank(*world, "cuda");
    FAIL() << "did not stop";
  } catch (const Error& error) {
    const std::string text = error.what();
    for (const char* word :
         {"Tesla T4 of compute capability 7.5", "8.0 or newer is needed", "set run.backend=cpu"})
      EXPECT_NE(text.find(word), std::string::npos) << word << ": " << text;
    EXPECT_EQ(text.find('\n'), std::string::npos);
  }
}

/// Saves what `from` holds after two steps and loads it into `to`.
void hand_over(TrainingOnDevice& from, TrainingOnDevice& to) {
  test::TemporaryFolder folder;
  std::string path;
  from.learner.with_tensors_on_root([&](const TrainingTensors& tensors) {
    path = save_checkpoint(folder.path(), from.config, from.learner.layout(), tensors,
                           {.step = 2, .tokens_seen = 0, .data = {}}, 0);
  });
  to.learner.with_tensors_on_root([&](const TrainingTensors& tensors) {
    load_tensors(open_checkpoint(path), to.learner.layout(), tensors);
  });
  to.learner.broadcast_tensors();
  to.learner.parameters_changed();
}

TEST(TrainingSimt, CheckpointsGoFromGpuToCpuAndBack) {
  const SafetensorsFile file(golden_path(kGolden));
  for (const bool sharded : {false, true}) {
    Config config = golden_config(file);
    config.run.backend = "cuda";
    config.run.attention = "plain";
    config.parallel.shard_optimizer = sharded;
    TrainingOnDevice gpu(kGpu, file, config), cpu(Device{}, file, config);
    gpu.start_from(file);
    gpu.train(0, 2);
    hand_over(gpu, cpu);
    EXPECT_EQ(cpu.parameters(), gpu.parameters());
    for (const auto moment : {&Optimizer::first_moment, &Optimizer::second_moment})
      EXPECT_EQ(test::host_values(cpu.context, (cpu.learner.optimizer().*moment)()),
                test::host_values(gpu.context, (gpu.learner.optimizer().*moment)()));
    // The parent of both goes on on either device as the golden run does.
    const std::vector<float> losses = file.floats("losses");
    EXPECT_NEAR(cpu.train(2, 1)[0].loss, losses[2], 1e-4);
    TrainingOnDevice back(kGpu, file, config);
    hand_over(cpu, back);
    EXPECT_EQ(back.parameters(), cpu.parameters());
    EXPECT_NEAR(back.train(3, 1)[0].loss, losses[3], 1e-4);
  }
}

TEST(TrainingSimt, EvaluationEqualsTheCpus) {
  const SafetensorsFile file(golden_path(kGolden));
  const Config config = golden_config(file);
  TrainingOnDevice gpu(kGpu, file, config), cpu(Device{}, file, config);
  MicroBatch batch = gpu.batch(0);
  batch.targets[3] = -1;
  LossSum sums[2];
  for (TrainingOnDevice* run : {&gpu, &cpu}) {
    run->start_from(file);
    sums[run == &cpu] = run->learner.evaluate(batch);
  }
  EXPECT_EQ(sums[0].targets, sums[1].targets);
  EXPECT_NEAR(sums[0].mean(), sums[1].mean(), 1e-5);
  batch.tokens[5] = config.model.vocab_size;
  EXPECT_THROW(gpu.learner.evaluate(batch), Error);
  batch.tokens[5] = 0;
  batch.targets[5] = config.model.vocab_size;
  EXPECT_THROW(gpu.learner.evaluate(batch), Error);
}

/// Logits of a prompt and of the tokens after it, past a segment's end and the caches' first size.
std::vector<float> generated(Context& context, const Config& config, const ParameterLayout& layout,
                             const TensorView& parameters) {
  Generator generator(context, config.model, layout, parameters);
  std::vector<int64_t> prompt;
  for (int64_t i = 0; i < 69; ++i) prompt.push_back((i * 31) % config.model.vocab_size);
  std::vector<float> all = generator.prefill(prompt);
  for (int64_t i = 0; i < 5; ++i) {
    const std::vector<float> next = generator.step((i * 17) % config.model.vocab_size);
    all.insert(all.end(), next.begin(), next.end());
  }
  return all;
}

TEST(TrainingSimt, GenerationEqualsTheCpus) {
  const SafetensorsFile file(golden_path(kGolden));
  Config config = golden_config(file);
  config.model.branches = {{8, 1}, {72, 2}, {128, 1}};
  const ParameterLayout layout(config.model);
  std::vector<float> parameters = test::golden_parameters(file, layout);
  Context cpu, gpu = gpu_context();
  gpu.set_attention(AttentionChoice::kCudnn);  // which would refuse float32
  const DeviceValues on_gpu(DType::kF32, parameters);
  const std::vector<float> expected = generated(cpu, config, layout, test::flat_view(parameters));
  const std::vector<float> actual = generated(gpu, config, layout, on_gpu.flat());
  EXPECT_LE(test::difference(actual, expected).max_difference, 1e-4);
  EXPECT_EQ(gpu.attention(), AttentionChoice::kCudnn);
  EXPECT_EQ(gpu.library_workspace(), nullptr);
}

}  // namespace
}  // namespace longnet::simt_test
