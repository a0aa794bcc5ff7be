// The configuration of a training that takes milliseconds a step: for tests of what happens around
// the steps, not of the model.
#pragma once

#include <string>

#include "core/config.h"
#include "support/temporary_folder.h"

namespace longnet::test {

/// `line` again and again, at least `bytes` bytes.
inline std::string repeated(const std::string& line, size_t bytes = 4000) {
  std::string text;
  while (text.size() < bytes) text += line;
  return text;
}

/// One layer, C 32, H 2, F 32, N 64, B 1, three steps on `text`, a checkpoint at the end only, all
/// of them kept, in FOLDER/run.
inline Config tiny_training(
    const TemporaryFolder& folder,
    const std::string& text = repeated("the cat sat on the mat and the dog lay by the log. ")) {
  Config config;
  config.model.dim = 32;
  config.model.layers = 1;
  config.model.heads = 2;
  config.model.ffn_dim = 32;
  config.model.branches = {{16, 1}, {64, 4}};
  config.data.train = {folder.write("text.txt", text)};
  config.data.cache = folder.file("cache");
  config.train.sequence_length = 64;
  config.train.steps = 3;
  config.train.evaluate_every = 0;
  config.optimizer.warmup_steps = 1;
  config.checkpoint.every = 0;
  config.checkpoint.keep_last = 0;
  config.run.folder = folder.file("run");
  config.run.progress = "off";
  return config;
}

}  // namespace longnet::test
