// Config: every setting of the trainer, typed, from defaults, a YAML file and key=value words.
//
// One table in config_keys.cpp (name, type, unit, range, help) is the only list of keys; the
// defaults are the initialisers below. configs/base.yaml and `longnet train --help` are printed
// from the two. Messages give file, line, key, allowed values and the nearest remedy; for an
// unknown key they suggest the nearest known one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/sequence_plan.h"

namespace longnet {

struct ModelConfig {
  int64_t vocab_size = 256;
  int64_t dim = 192;  // C
  int64_t layers = 4;
  int64_t heads = 6;                                              // H; D = C / H, 8..256
  int64_t ffn_dim = 768;                                          // F
  std::vector<Branch> branches{{512, 1}, {2048, 4}, {8192, 16}};  // YAML: [[512, 1], [2048, 4]]
  bool causal = true;
  std::string head_offset = "interleaved";  // interleaved | blocked
  std::string position = "xpos";            // xpos | rope | none
  double xpos_scale_base = 512;             // tokens
  double rope_base = 10000;
  std::string norm = "sub_ln";       // sub_ln | pre_ln
  std::string block = "sequential";  // sequential | parallel
  std::string activation = "gelu";   // gelu | swiglu
  bool qk_norm = false;
  bool bias = true;
  bool tie_embeddings = false;
  double layer_norm_eps = 1e-5;

  int64_t head_dim() const { return dim / heads; }
  HeadOffset head_offset_mode() const;
  bool operator==(const ModelConfig&) const = default;
};

struct DataConfig {
  std::vector<std::string> train;       // files, folders or globs
  std::vector<std::string> validation;  // likewise; empty: taken from the end of train
  std::string format = "auto";          // auto | bytes | tokens_u16 | tokens_u32
  std::string split = "fraction";  // fraction | enwik8 (90/5/5 MB) ; used where validation is empty
  double validation_fraction = 0.05;
  int64_t separator = 0;             // byte between files of a folder, 0..255; -1: none
  double bytes_per_token = 0;        // token files: 0 = unknown (no bits per byte)
  std::string order = "shuffled";    // sequential | shuffled
  std::string cache = "data/cache";  // folder for unpacked and joined files
  std::string extensions;            // folders: comma list such as ".c,.h"; empty: every file
  bool operator==(const DataConfig&) const = default;
};

struct TrainConfig {
  int64_t sequence_length = 8192;  // N, tokens
  int64_t batch_size = 1;          // B, sequences per replica and micro-step
  int64_t accumulation = 1;        // micro-steps per optimizer step
  int64_t steps = 1000;
  int64_t seed = 1;
  std::string recompute = "none";  // none | layer
  int64_t recompute_rows = 65536;  // of a feed-forward layer at a time, with recompute
  int64_t evaluate_every = 200;    // steps; 0: never
  int64_t evaluate_samples = 8;    // sequences per evaluation, 0: all
  int64_t sample_every = 0;        // steps; 0: never
  std::string sample_prompt = "The ";
  int64_t sample_tokens = 200;
  std::string on_spike = "warn";  // warn | stop | rollback: where a step's loss jumps
  int64_t max_rollbacks = 3;      // in a row to one checkpoint
  bool operator==(const TrainConfig&) const = default;
};

struct OptimizerConfig {
  std::string name = "adamw";  // adamw | stable_adamw
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.98;
  double eps = 1e-8;
  double weight_decay = 0.01;
  double clip_norm = 1.0;               // global L2 norm; 0: no clipping
  std::string schedule = "polynomial";  // constant | linear | cosine | polynomial
  int64_t warmup_steps = 100;
  double final_ratio = 0.0;  // learning rate at the last step as a share of the peak
  double power = 1.0;        // of the polynomial
  bool operator==(const OptimizerConfig&) const = default;
};

struct ParallelConfig {
  int64_t sequence_ranks = 0;  // 0: all ranks / data_ranks
  int64_t data_ranks = 1;
  int64_t threads = 0;           // OpenMP threads per rank; 0: OpenMP's default
  int64_t bucket_mib = 16;       // gradients are summed in buckets of this size
  double timeout_s = 600;        // waits for other ranks end after this, seconds; 0: never
  bool shard_optimizer = false;  // each rank holds and updates its range only (ZeRO stage 1)
  bool operator==(const ParallelConfig&) const = default;
};

struct CheckpointConfig {
  int64_t every = 500;          // steps; 0: only at the end
  int64_t keep_last = 2;        // older ones are removed; 0: keep all
  std::string resume = "auto";  // auto (latest in run.folder, if any) | none | path of a checkpoint
  std::string on_failure = "continue";  // continue | stop: when a save fails twice
  bool accept_new_data = false;         // resume on data of other content than the checkpoint's
  bool operator==(const CheckpointConfig&) const = default;
};

struct RunConfig {
  std::string folder = "runs/default";  // log, metrics.jsonl, checkpoints
  bool overwrite = false;               // sets an old run in the folder aside; see config_keys.cpp
  std::string backend = "cpu";          // cpu | cuda
  std::string attention = "auto";       // auto | cudnn | native | plain; with backend cuda
  std::string dtype = "f32";            // f32 | bf16 (mixed: see config_keys.cpp)
  std::string log_level = "info";       // debug | info | warn | error
  std::string progress = "auto";        // auto (on a terminal) | on | off
  int64_t log_every = 1;                // steps between lines
  bool operator==(const RunConfig&) const = default;
};

struct Config {
  ModelConfig model;
  DataConfig data;
  TrainConfig train;
  OptimizerConfig optimizer;
  ParallelConfig parallel;
  CheckpointConfig checkpoint;
  RunConfig run;
  bool operator==(const Config&) const = default;
};

/// One row of the table of keys, as text; key is "section.name".
struct ConfigKey {
  std::string key, type, unit, default_value, allowed, help;
};
std::vector<ConfigKey> config_keys();

/// Defaults, then the YAML file (path may be empty), then "section.key=value" words, then all
/// checks that need neither data nor a rank count. Throws Error: one line with file:line or the
/// word.
Config load_config(const std::string& path, const std::vector<std::string>& overrides);
/// load_config() from YAML text; messages show `name` in place of the path.
Config parse_config(const std::string& yaml_text, const std::string& name,
                    const std::vector<std::string>& overrides);
/// Applies "section.key=value" words to an existing config and checks it again.
void apply_overrides(Config& config, const std::vector<std::string>& overrides);
/// Checks all rules; the functions above call it. Messages name the keys involved and the remedy.
void check_config(const Config& config);
/// Throws Error for a model that sees the tokens it predicts. Called wherever a next-token loss is
/// trained on or reported.
void check_next_token_loss(const Config& config);
/// YAML with every key, which load_config reads back to an equal Config.
std::string to_yaml(const Config& config);
/// configs/base.yaml: every key with default, unit, allowed values and meaning as comments.
std::string base_yaml();
/// The text of `longnet train --help` about keys.
std::string keys_help();

}  // namespace longnet
