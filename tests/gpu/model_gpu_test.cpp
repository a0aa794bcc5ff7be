// The whole model on a real GPU: golden model files, the golden training trajectory, bf16 against
// f32, the GPU against the CPU.
#include <cmath>

#include "kernels/linear/linear.h"
#include "simt/device_values.h"
#include "simt/support.h"
#include "support/compare.h"
#include "support/training_case.h"
#include "train/backend.h"

namespace longnet::simt_test {
namespace {

using test::difference;
using test::error_ratio;

std::vector<float> download(const Context& context, const TensorView& tensor) {
  std::vector<float> values(tensor.elements());
  if (context.on_gpu())
    device_runtime::copy_to_host(values.data(), tensor.data, tensor.bytes(), context.stream());
  else
    std::copy_n(tensor.f32(), values.size(), values.begin());
  context.wait();
  return values;
}

class GoldenModelGpu : public ::testing::TestWithParam<const char*> {};

/// Loss, logits and gradients of a golden model file, by a model in GPU memory; matrices: also with
/// a bf16 copy of the parameters, to bf16's rounding.
void check_model(const std::string& name, DType dtype) {
  const SafetensorsFile file(test::golden_path(name));
  const ModelConfig config = test::model_config(nlohmann::json::parse(file.metadata().at("case")));
  const std::vector<int64_t>& shape = file.entry("tokens").shape;
  const int64_t batch = shape[0], n = shape[1] - 1;
  const ParameterLayout layout(config);
  const std::vector<float> start = test::golden_parameters(file, layout);
  std::vector<int64_t> tokens, targets;
  test::split_tokens(file.integers("tokens"), batch, 0, n, tokens, targets);

  Context context = gpu_context();
  NoExchange exchange;
  Arena activations("activations", false, kGpu), workspace("workspace", false, kGpu);
  const int64_t scratch = linear_workspace_bytes(context);
  context.set_library_workspace(workspace.allocate_bytes(scratch), scratch);
  const DeviceValues parameters(DType::kF32, start), rounded(DType::kBF16, start),
      gradients(DType::kF32, std::vector<float>(start.size())), d_tokens(tokens),
      d_targets(targets), logits(DType::kF32, batch * n * config.vocab_size);
  LongNetOptions options;
  if (dtype == DType::kBF16) options.matrices = rounded.flat();
  LongNet model(context, config,
                SequencePlan(n, 1, 0, config.heads, config.branches, config.head_offset_mode()),
                batch, layout, parameters.flat(), gradients.flat(), exchange,
                {activations, workspace}, options);
  model.forward(d_tokens.view({batch, n}));
  model.logits(logits.view({batch * n, config.vocab_size}), 0);
  const CrossEntropyResult result =
      model.loss_and_backward(d_targets.view({batch, n}), 1.0 / static_cast<double>(batch * n));
  context.wait();
  const double tolerance = dtype == DType::kF32 ? 1e-5 : 0.05;
  EXPECT_EQ(result.count, batch * n);
  EXPECT_NEAR(result.loss_sum / static_cast<double>(result.count), file.floats("loss")[0],
              dtype == DType::kF32 ? 1e-5 : 0.01);
  EXPECT_LE(error_ratio(difference(logits.floats(), file.floats("logits")), 0, tolerance), 1);
  double largest = 0, worst = 0;  // largest: G
  for (const ParameterInfo& info : layout.parameters())
    for (const float g : file.floats("grad." + info.name))
      largest = std::max(largest, std::abs(double(g)));
  const std::vector<float> got = gradients.floats();
  for (const ParameterInfo& info : layout.parameters()) {
    const std::vector<float> expected = file.floats("grad." + info.name);
    // In bf16 small tensors lie in the rounding of large ones: held against G.
    const double ratio =
        error_ratio(difference(got.data() + info.offset, expected.data(), info.elements),
                    dtype == DType::kF32 ? largest : 10 * largest, tolerance);
    EXPECT_LE(ratio, 1) << info.name;
    worst = std::max(worst, ratio);
  }
  printf("  %s %s: worst gradient error %.3f of the allowance\n", name.c_str(), dtype_name(dtype),
         worst);
  context.set_library_workspace(nullptr, 0);
}

TEST_P(GoldenModelGpu, LossLogitsAndGradientsF32) { check_model(GetParam(), DType::kF32); }
TEST_P(GoldenModelGpu, LossLogitsAndGradientsBf16) { check_model(GetParam(), DType::kBF16); }

INSTANTIATE_TEST_SUITE_P(All, GoldenModelGpu,
                         ::testing::Values("model-magneto-xpos", "model-preln-rope-tied",
                                           "model-parallel-swiglu-qknorm", "model-encoder"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

struct Trajectory {
  std::vector<double> losses, norms;
  std::vector<float> parameters;
};

/// The golden training case on one device, one rank.
Trajectory train(bool gpu, const std::string& dtype, const std::string& recompute = "none",
                 int64_t steps = -1) {
  const SafetensorsFile file(test::golden_path("training-adamw"));
  Config config = test::training_config(file);
  config.run.dtype = dtype;
  config.train.recompute = recompute;
  Context context = gpu ? gpu_context() : Context();
  Mesh mesh = make_mesh(transport_of(context, make_single_communicator(), config.parallel), 0, 1);
  Learner learner(context, config, mesh);
  std::vector<float> start = test::golden_parameters(file, learner.layout());
  const TensorView& parameters = learner.parameters();
  if (gpu)
    device_runtime::copy_to_device(parameters.data, start.data(), parameters.bytes(),
                                   context.stream());
  else
    std::copy(start.begin(), start.end(), parameters.f32());
  context.wait();
  learner.parameters_changed();
  const std::vector<int64_t> tokens = file.integers("tokens");
  Trajectory t;
  for (int64_t step = 0; step < (steps < 0 ? config.train.steps : steps); ++step) {
    const MicroBatch batch = test::golden_batch(tokens, file.entry("tokens").shape, step, 0,
                                                config.train.batch_size, learner.plan());
    const StepResult result = learner.train_step({&batch, 1}, step + 1);
    t.losses.push_back(result.loss);
    t.norms.push_back(result.gradient_norm);
  }
  context.wait();
  t.parameters = download(context, learner.parameters());
  return t;
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double worst = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    worst = std::isfinite(a[i]) ? std::max(worst, std::abs(a[i] - b[i])) : INFINITY;
  return worst;
}

TEST(TrainingGpu, FollowsTheGoldenTrajectory) {
  const SafetensorsFile file(test::golden_path("training-adamw"));
  const std::vector<float> losses = file.floats("losses"), norms = file.floats("grad_norms");
  const Trajectory t = train(true, "f32");
  ASSERT_EQ(t.losses.size(), losses.size());
  double worst = 0;
  for (size_t i = 0; i < losses.size(); ++i) {
    EXPECT_NEAR(t.losses[i], losses[i], 1e-4) << "step " << i + 1;
    EXPECT_NEAR(t.norms[i], norms[i], 2e-4 * norms[i]) << "step " << i + 1;
    worst = std::max(worst, std::abs(t.losses[i] - losses[i]));
  }
  printf("  %zu steps: largest loss difference %.2g nats\n", losses.size(), worst);
}

TEST(TrainingGpu, Bf16FollowsTheGoldenTrajectory) {
  const Trajectory cpu = train(false, "f32"), gpu = train(true, "bf16");
  const double worst = largest_difference(gpu.losses, cpu.losses);
  EXPECT_LE(worst, 0.02);
  EXPECT_GT(worst, 0) << "bf16 was not in use";
  printf("  bf16: largest loss difference %.2g nats\n", worst);
}

TEST(TrainingGpu, GpuFollowsCpuWithAndWithoutRecomputation) {
  const Trajectory cpu = train(false, "f32", "none", 6), gpu = train(true, "f32", "none", 6),
                   again = train(true, "f32", "layer", 6);
  EXPECT_LE(largest_difference(gpu.losses, cpu.losses), 1e-4);
  EXPECT_LE(largest_difference(again.losses, gpu.losses), 1e-5);
  EXPECT_LE(error_ratio(difference(gpu.parameters, cpu.parameters), 0, 1e-3), 1);
}

}  // namespace
}  // namespace longnet::simt_test
