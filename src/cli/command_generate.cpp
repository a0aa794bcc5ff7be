// longnet generate CHECKPOINT: continues a prompt token by token, with cached keys and values.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>

#include "cli/arguments.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "core/arena.h"
#include "core/input_file.h"
#include "core/output_file.h"
#include "model/generation.h"
#include "train/backend.h"
#include "train/checkpoint.h"
#include "train/metrics.h"
#include "train/rank_context.h"

namespace longnet {
namespace {

constexpr int64_t kMaxPromptBytes = int64_t{1} << 30;

struct Arguments {
  std::string checkpoint, prompt = "The ", prompt_file, out, backend = "cpu";
  std::vector<int64_t> prompt_tokens;
  int64_t tokens = 200, top_k = 0;
  double temperature = 1.0;
  int64_t seed = 1;
  int threads = 0;
};

std::vector<int64_t> prompt_of(const Arguments& arguments, int64_t vocabulary) {
  std::vector<int64_t> tokens = arguments.prompt_tokens;
  if (tokens.empty()) {
    std::string text = arguments.prompt;
    if (!arguments.prompt_file.empty()) {
      text = read_input_file(arguments.prompt_file, kMaxPromptBytes);
    }
    if (vocabulary != 256)
      throw Error("a vocabulary of {} tokens has no text form; give --prompt-tokens 1,2,3",
                  vocabulary);
    for (unsigned char c : text) tokens.push_back(c);
  }
  if (tokens.empty()) throw Error("the prompt is empty; give --prompt TEXT");
  for (int64_t token : tokens)
    if (token < 0 || token >= vocabulary)
      throw Error("--prompt-tokens: {} is outside the vocabulary; allowed: 0 to {}", token,
                  vocabulary - 1);
  return tokens;
}

/// The logits of the text's token i, or an error where sampling from them would write rubbish.
const std::vector<float>& checked(const std::vector<float>& logits, const Arguments& arguments,
                                  int64_t i) {
  if (std::all_of(logits.begin(), logits.end(), [](float v) { return std::isfinite(v); }))
    return logits;
  if (i > 0 && arguments.out.empty()) write_output("\n");
  flush_output();
  throw Error(
      "{}: the model's scores for token {} are not finite, so the weights are unusable; use an "
      "earlier checkpoint of the run",
      arguments.checkpoint, i + 1);
}

/// Where the continuation goes: standard output as it comes, or a file that appears as a whole.
class Sink {
 public:
  explicit Sink(const std::string& path) {
    if (!path.empty()) file_.emplace(path);
  }
  void write(const std::string& text) {
    if (file_) return file_->write(text);
    write_output(text);
    flush_output();
  }
  void commit() {
    if (file_) file_->commit();
  }

 private:
  std::optional<OutputFile> file_;
};

int generate(const Arguments& arguments) {
  const auto world = world_communicator();
  require_one_rank(*world, "generate");
  const Checkpoint checkpoint = open_checkpoint(arguments.checkpoint);
  const ModelConfig& model = checkpoint.config.model;
  const std::vector<int64_t> prompt = prompt_of(arguments, model.vocab_size);
  const bool text = model.vocab_size == 256;
  Context context = make_context(*world, arguments.backend, arguments.threads);
  warn_if_crowded(*world, context);
  const ParameterLayout layout(model);
  Arena arena("parameters", false, context.device());
  const TensorView parameters = arena.allocate_zeroed(DType::kF32, {layout.elements()});
  load_tensors(checkpoint, layout,
               {parameters, {}, {}, nullptr, context.on_gpu() ? &context : nullptr});
  Sink sink(arguments.out);
  Generator generator(context, model, layout, parameters);

  const auto start = std::chrono::steady_clock::now();
  std::vector<float> logits = generator.prefill(prompt);
  const auto prefilled = std::chrono::steady_clock::now();
  const SamplingOptions options{arguments.temperature, arguments.top_k,
                                static_cast<uint64_t>(arguments.seed)};
  for (int64_t i = 0; i < arguments.tokens; ++i) {
    const int64_t token =
        sample_token(checked(logits, arguments, i), options, static_cast<uint64_t>(i));
    sink.write(text ? std::string(1, static_cast<char>(token))
                    : fmt::format("{}{}", i ? " " : "", token));
    if (i + 1 < arguments.tokens) logits = generator.step(token);
  }
  sink.write("\n");  // the line about speed stands on its own
  sink.commit();
  const std::chrono::duration<double> prefill = prefilled - start;
  const std::chrono::duration<double> decode = std::chrono::steady_clock::now() - prefilled;
  fmt::print(
      stderr, "prompt {} tokens in {:.3f} s; {} tokens in {:.3f} s, {:.1f} tokens/s; cache {}\n",
      prompt.size(), prefill.count(), arguments.tokens, decode.count(),
      static_cast<double>(arguments.tokens) / decode.count(), bytes_text(generator.cache_bytes()));
  return 0;
}

}  // namespace

void register_generate(Command& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  Command command = app.add_subcommand("generate", "Continue a prompt with a trained model");
  command.add_option("CHECKPOINT", arguments->checkpoint, "Folder such as runs/x/step-00000500")
      .required()
      .transform(typed_path());
  Option prompt =
      command.add_option("--prompt", arguments->prompt, "Text (byte models)").capture_default_str();
  Option file = command.add_option("--prompt-file", arguments->prompt_file, "File with the text")
                    .transform(typed_path())
                    .excludes(prompt);
  command.add_option("--prompt-tokens", arguments->prompt_tokens, "Token numbers, comma-separated")
      .comma_separated()
      .check(whole_number(0, int64_t{1} << 32))
      .excludes(prompt)
      .excludes(file);
  command
      .add_option("--out", arguments->out, "File for the continuation, in place of standard output")
      .transform(typed_path());
  command.add_option("--tokens", arguments->tokens, "Tokens to add")
      .check(whole_number(int64_t{1}, int64_t{1} << 40))
      .capture_default_str();
  command.add_option("--temperature", arguments->temperature, "0: always the most likely token")
      .check(number_range(0, 100))
      .capture_default_str();
  command.add_option("--top-k", arguments->top_k, "Only the k most likely tokens, 0: all")
      .check(whole_number(int64_t{0}, int64_t{1} << 31))
      .capture_default_str();
  command.add_option("--seed", arguments->seed, "Of the random draws")
      .check(whole_number(0, std::numeric_limits<int64_t>::max()))
      .capture_default_str();
  command.add_option("--backend", arguments->backend, "Where to compute, as run.backend")
      .check(one_of({"cpu", "cuda"}))
      .capture_default_str();
  command.add_option("--threads", arguments->threads, "OpenMP threads, 0: OpenMP's default")
      .check(whole_number(0, 4096))
      .capture_default_str();
  command.callback([arguments, &action] { action = [arguments] { return generate(*arguments); }; });
}

}  // namespace longnet
