// longnet evaluate CHECKPOINT [key=value ...]: loss of a checkpoint over a part of the data, on all
// ranks.
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/arguments.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "train/agreement.h"
#include "train/backend.h"
#include "train/checkpoint.h"
#include "train/metrics.h"
#include "train/rank_context.h"
#include "train/trainer.h"

namespace longnet {
namespace {

struct Arguments {
  std::string checkpoint;
  std::vector<std::string> overrides;
  std::string split = "validation";
  int64_t samples = 0;
  bool json = false;
};

int evaluate(const Arguments& arguments) {
  auto world = world_communicator();
  Config config;
  run_on_all(*world, [&] {
    config = open_checkpoint(arguments.checkpoint).config;
    const ModelConfig model = config.model;
    apply_overrides(config, arguments.overrides);
    check_next_token_loss(config);
    ModelConfig allowed = config.model;
    allowed.branches = model.branches;  // other branches are another attention, same parameters
    if (!(allowed == model))
      throw Error(
          "evaluate: of model.* only model.branches may be set; the rest is the checkpoint's");
  });
  check_same_configuration(*world, config);
  const Split split = arguments.split == "train"  ? Split::kTrain
                      : arguments.split == "test" ? Split::kTest
                                                  : Split::kValidation;
  Context context =
      make_context(*world, config.run.backend, static_cast<int>(config.parallel.threads));
  warn_if_crowded(*world, context);
  Mesh mesh =
      make_mesh_on_all(transport_of(context, std::move(world), config.parallel), config.parallel);
  const auto dataset = open_dataset(*mesh.world, config, split);
  Learner learner(context, config, mesh);
  run_on_root(*mesh.world, [&] {
    load_tensors(open_checkpoint(arguments.checkpoint), learner.layout(),
                 {learner.parameters(), {}, {}, nullptr, context.on_gpu() ? &context : nullptr});
  });
  learner.broadcast_parameters();
  learner.parameters_changed();
  const LossSum loss = evaluate_dataset(learner, mesh, config, *dataset, arguments.samples);
  run_on_root(*mesh.world, [&] {
    if (!std::isfinite(loss.mean()))
      throw Error(
          "{}: the loss is {} over {} tokens, so the weights are unusable; evaluate an earlier "
          "checkpoint of the run",
          arguments.checkpoint, loss.mean(), loss.targets);
  });
  if (mesh.world->rank() != 0) return 0;
  const double bits = bits_per_byte(loss.mean(), dataset->bytes_per_token());
  if (arguments.json) {
    nlohmann::ordered_json json{{"checkpoint", arguments.checkpoint},
                                {"split", arguments.split},
                                {"sequence_length", config.train.sequence_length},
                                {"tokens", loss.targets},
                                {"loss", loss.mean()},
                                {"bits_per_token", loss.mean() / std::log(2.0)},
                                {"perplexity", std::exp(loss.mean())}};
    if (bits >= 0) json["bits_per_byte"] = bits;
    write_json(json);
  } else {
    write_output(
        fmt::format("{}\n{} tokens: loss {:.5f} nats, {:.5f} bits/token, perplexity {:.3f}{}\n",
                    dataset->description(), loss.targets, loss.mean(), loss.mean() / std::log(2.0),
                    std::exp(loss.mean()),
                    bits >= 0 ? fmt::format(", {:.5f} bits/byte", bits) : std::string()));
  }
  return 0;
}

}  // namespace

void register_evaluate(Command& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  Command command = app.add_subcommand("evaluate", "Loss of a checkpoint, bits per token and byte");
  command.add_option("CHECKPOINT", arguments->checkpoint, "Folder such as runs/x/step-00000500")
      .required()
      .transform(typed_path());
  command.add_option(
      "SETTING", arguments->overrides,
      "key=value: settings that override the checkpoint, such as train.sequence_length=32768");
  command.add_option("--split", arguments->split, "Part of the data (test: enwik8 only)")
      .check(one_of({"validation", "train", "test"}))
      .capture_default_str();
  command.add_option("--samples", arguments->samples, "Sequences, 0: all")
      .check(whole_number(0, int64_t{1} << 53))
      .capture_default_str();
  command.add_flag("--json", arguments->json, "Print JSON");
  command.callback([arguments, &action] { action = [arguments] { return evaluate(*arguments); }; });
}

}  // namespace longnet
