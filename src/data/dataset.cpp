// See dataset.h. Where the files come from: sources.h.
#include "data/dataset.h"

#include <algorithm>

#include "core/error.h"
#include "data/content_hash.h"
#include "data/sources.h"

namespace longnet {
namespace {

constexpr int64_t kEnwik8Bytes = 100'000'000, kEnwik8Train = 90'000'000,
                  kEnwik8Validation = 5'000'000;
constexpr int64_t kCheckedTokens = 1 << 20;  // by the search for ids outside the vocabulary

/// A bijection of [0, n) without a table: a four-round Feistel network on the smallest even number
/// of bits that holds n, walked until it falls inside.
int64_t permute(int64_t place, int64_t n, uint64_t key) {
  int half = 1;
  while ((int64_t{1} << (2 * half)) < n) ++half;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  uint64_t value = static_cast<uint64_t>(place);
  do {
    uint64_t left = value >> half, right = value & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      const uint64_t next = left ^ (mix(key ^ mix(right + (round << 56))) & mask);
      left = right;
      right = next;
    }
    value = left << half | right;
  } while (value >= static_cast<uint64_t>(n));
  return static_cast<int64_t>(value);
}

/// Throws Error where data.train holds text and data.validation tokens, or the other way round.
/// Data for training that are not here (an evaluation on another machine) cannot be asked.
void refuse_other_kind(const DataConfig& config) {
  int train = 0;
  try {
    if (config.train.empty()) return;
    train = token_width(config.train, "data.train", config);
  } catch (const Error&) {
    return;
  }
  const int validation = token_width(config.validation, "data.validation", config);
  const auto kind = [](int width) { return width == 1 ? "text or bytes" : "tokens"; };
  if ((train == 1) != (validation == 1))
    throw Error(
        "data.validation: {} holds {}, data.train {}; a loss over one says nothing about the "
        "other: "
        "name files of one kind",
        config.validation[0], kind(validation), kind(train));
}

}  // namespace

struct Dataset::Impl {
  std::vector<TokenFile> sources;
  int64_t source_files = 0;
  std::vector<int64_t> source_begin;  // global number of each source's first token; and the end
  int64_t begin = 0, end = 0;         // this split's tokens
  int64_t sequence_length = 0, vocab_size = 0;
  double bytes_per_token = 0;
  std::string description;

  void copy(int64_t first, int64_t count, int64_t* out) const {
    // The source that holds token `first`, then on over its neighbours.
    size_t source = std::upper_bound(source_begin.begin(), source_begin.end(), first) -
                    source_begin.begin() - 1;
    while (count > 0) {
      const int64_t inside = first - source_begin[source];
      const int64_t part = std::min(count, sources[source].tokens() - inside);
      sources[source].copy(inside, part, out);
      if (sources[source].width() > 1 || vocab_size < 256) check(source, inside, part, out);
      first += part;
      out += part;
      count -= part;
      ++source;
    }
  }

  /// Ids outside the vocabulary, found before the first step: in small data all, else in samples.
  void check_samples() const {
    if (sources[0].width() == 1 && vocab_size >= 256) return;
    std::vector<int64_t> tokens;
    sample_places(source_begin.back(), kCheckedTokens, [&](int64_t first, int64_t count) {
      tokens.resize(static_cast<size_t>(count));
      copy(first, count, tokens.data());
    });
  }

  void check(size_t source, int64_t inside, int64_t count, const int64_t* tokens) const {
    for (int64_t i = 0; i < count; ++i)
      if (tokens[i] >= vocab_size)
        throw Error(
            "{}: token {} at byte {} is outside the vocabulary; allowed: 0 to {} "
            "(model.vocab_size)",
            sources[source].path(), tokens[i], sources[source].byte_offset(inside + i),
            vocab_size - 1);
  }
};

Dataset::Dataset(const DataConfig& config, Split split, int64_t sequence_length, int64_t vocab_size)
    : impl_(std::make_unique<Impl>()) {
  LN_CHECK(sequence_length >= 1, "sequence length {}", sequence_length);
  Impl& impl = *impl_;
  impl.sequence_length = sequence_length;
  impl.vocab_size = vocab_size;
  const bool own_files = split == Split::kValidation && !config.validation.empty();
  const std::string key = own_files ? "data.validation" : "data.train";
  if (own_files) refuse_other_kind(config);
  Sources opened = open_sources(own_files ? config.validation : config.train, key, config);
  impl.sources = std::move(opened.files);
  impl.source_files = opened.source_files;
  int64_t total = 0;
  for (const TokenFile& source : impl.sources) {
    impl.source_begin.push_back(total);
    total += source.tokens();
  }
  impl.source_begin.push_back(total);
  const bool bytes = impl.sources[0].width() == 1;
  if (bytes && vocab_size < 256)
    throw Error("{}: byte data needs model.vocab_size of at least 256, not {}", key, vocab_size);
  impl.bytes_per_token = bytes ? 1.0 : config.bytes_per_token;

  impl.end = total;
  const char* name = split == Split::kTrain  ? "train"
                     : split == Split::kTest ? "test"
                                             : "validation";
  if (split == Split::kTest && (config.split != "enwik8" || !config.validation.empty()))
    throw Error(
        "there is no test part: allowed with data.split=enwik8 and an empty data.validation only, "
        "data.split is {}",
        config.split);
  const bool whole_files = own_files || (split == Split::kTrain && !config.validation.empty());
  if (!whole_files && config.split == "enwik8") {
    if (!bytes || total != kEnwik8Bytes)
      throw Error(
          "{}: data.split=enwik8 needs exactly {} bytes, {} holds {}; use "
          "data.split=fraction",
          key, kEnwik8Bytes, impl.sources[0].path(), total);
    impl.begin = split == Split::kTrain        ? 0
                 : split == Split::kValidation ? kEnwik8Train
                                               : kEnwik8Train + kEnwik8Validation;
    impl.end = split == Split::kTrain        ? kEnwik8Train
               : split == Split::kValidation ? kEnwik8Train + kEnwik8Validation
                                             : kEnwik8Bytes;
  } else if (!whole_files) {
    const int64_t validation = static_cast<int64_t>(total * config.validation_fraction);
    impl.begin = split == Split::kTrain ? 0 : total - validation;
    impl.end = split == Split::kTrain ? total - validation : total;
  }
  if (tokens() < sequence_length + 1)
    throw Error(
        "{}: the {} part has {} tokens, a sequence and its last target need {}; {}{}", key, name,
        tokens(), sequence_length + 1,
        tokens() > 1 ? fmt::format("set train.sequence_length to at most {}", tokens() - 1)
                     : "give more data",
        split == Split::kValidation && !own_files ? " or raise data.validation_fraction" : "");
  impl.check_samples();
  impl.description =
      fmt::format("{}: {} {} in {} file{} ({}{}){}", name, tokens(), bytes ? "bytes" : "tokens",
                  impl.source_files, impl.source_files == 1 ? "" : "s", impl.sources[0].path(),
                  impl.sources.size() == 1 ? "" : ", ...",
                  opened.left_out.empty() ? "" : "; left out: " + opened.left_out);
}

Dataset::~Dataset() = default;

int64_t Dataset::tokens() const { return impl_->end - impl_->begin; }
int64_t Dataset::samples() const { return (tokens() - 1) / impl_->sequence_length; }
double Dataset::bytes_per_token() const { return impl_->bytes_per_token; }
const std::string& Dataset::description() const { return impl_->description; }

int64_t Dataset::sample_index(const DataState& state, int64_t seed,
                              const std::string& order) const {
  LN_CHECK(state.next_sample >= 0 && state.next_sample < samples(), "sample {} of {}",
           state.next_sample, samples());
  if (order == "sequential") return state.next_sample;
  const uint64_t key = mix(mix(static_cast<uint64_t>(seed)) ^ static_cast<uint64_t>(state.epoch));
  return permute(state.next_sample, samples(), key);
}

void Dataset::read(int64_t sample, int64_t begin, int64_t length, int64_t* tokens,
                   int64_t* targets) const {
  const Impl& impl = *impl_;
  LN_CHECK(sample >= 0 && sample < samples() && begin >= 0 && length >= 0 &&
               begin + length <= impl.sequence_length,
           "tokens [{}, {}) of sample {}", begin, begin + length, sample);
  if (length == 0) return;
  const int64_t first = impl.begin + sample * impl.sequence_length + begin;
  impl.copy(first, length, tokens);
  std::copy(tokens + 1, tokens + length, targets);
  impl.copy(first + length, 1, targets + length - 1);
}

DataFingerprint Dataset::fingerprint() const {
  const Impl& impl = *impl_;
  const int64_t total = impl.source_begin.back(), width = impl.sources[0].width();
  ContentHash hash;
  hash.add(static_cast<uint64_t>(width));
  std::vector<int64_t> tokens;
  sample_places(total, kHashedBytes / width, [&](int64_t first, int64_t count) {
    tokens.resize(static_cast<size_t>(count));
    impl.copy(first, count, tokens.data());
    for (const int64_t token : tokens) hash.add(static_cast<uint64_t>(token));
  });
  return {impl.source_files, total * width, hash.text()};
}

void advance(DataState& state, int64_t samples_per_epoch) {
  if (++state.next_sample < samples_per_epoch) return;
  state.next_sample = 0;
  ++state.epoch;
}

}  // namespace longnet
