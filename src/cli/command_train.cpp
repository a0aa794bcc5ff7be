// longnet train CONFIG [key=value ...]: a training run on all ranks of the job.
#include "cli/arguments.h"
#include "cli/commands.h"
#include "train/agreement.h"
#include "train/trainer.h"

namespace longnet {

void register_train(Command& app, Action& action) {
  struct Arguments {
    std::string config;
    std::vector<std::string> overrides;
  };
  auto arguments = std::make_shared<Arguments>();
  Command command = app.add_subcommand("train", "Train a model from a YAML file");
  command.add_option("CONFIG", arguments->config, "YAML file; missing keys have their defaults")
      .required()
      .transform(typed_path());
  command.add_option("SETTING", arguments->overrides,
                     "key=value: settings that override the file, such as train.steps=100");
  command.footer("Keys (configs/base.yaml lists them too):\n" + keys_help());
  command.callback([arguments, &action] {
    action = [arguments] {
      auto world = world_communicator();
      const Config config = load_config_on_all(*world, arguments->config, arguments->overrides);
      run_on_all(*world, [&] { check_next_token_loss(config); });
      Trainer trainer(config, std::move(world));
      trainer.run();
      return 0;
    };
  });
}

}  // namespace longnet
