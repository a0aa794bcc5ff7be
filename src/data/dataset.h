// Dataset: files as one long sequence of tokens, read in a deterministic order of samples.
//
// Sources: raw text or bytes (one token per byte), also .gz (unpacked once into data.cache);
// folders of files joined by a separator byte (joined once into data.cache); token files of uint16
// or uint32, with or without llm.c's 1024-byte header. Each rank reads only its own shard.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/config.h"
#include "core/tensor.h"

namespace longnet {

enum class Split { kTrain, kValidation, kTest };  // kTest: enwik8 split only

/// Position in the data order; stored in checkpoints; independent of the number of ranks.
struct DataState {
  int64_t epoch = 0;
  int64_t next_sample = 0;  // index in this epoch's order, over all replicas
  bool operator==(const DataState&) const = default;
};

/// Identifies the data by content, whatever the paths and times.
struct DataFingerprint {
  int64_t files = 0;  // that were named or found
  int64_t bytes = 0;  // of all tokens, unpacked and joined
  std::string hash;   // 16 hexadecimal digits: of everything up to 64 MiB, else of samples
  bool operator==(const DataFingerprint&) const = default;
};

class Dataset {
 public:
  /// Opens the data and, if needed, builds cache files (one process only: call it on rank 0 first,
  /// then on the others after a barrier). Throws Error naming file, cause and remedy: missing file,
  /// empty data, fewer than N + 1 tokens, token id >= vocab_size, truncated .gz, bad llm.c header,
  /// odd byte counts.
  Dataset(const DataConfig& config, Split split, int64_t sequence_length, int64_t vocab_size);
  ~Dataset();
  Dataset(const Dataset&) = delete;
  Dataset& operator=(const Dataset&) = delete;

  int64_t tokens() const;
  int64_t samples() const;                 // sequences per epoch: (tokens - 1) / N
  double bytes_per_token() const;          // 1 for text and bytes; 0: unknown
  const std::string& description() const;  // one line for the log: what, tokens, files

  /// Covers all files of data.train or data.validation (not only the split). Reads at most 64 MiB
  /// (256 pieces, evenly spread, of larger data), so a change inside large data that keeps the size
  /// may go unnoticed.
  DataFingerprint fingerprint() const;

  /// The sample at place state.next_sample of the epoch's order. sequential: the place itself.
  /// shuffled: a permutation keyed by (seed, epoch), O(1) memory.
  int64_t sample_index(const DataState& state, int64_t seed, const std::string& order) const;
  /// Copies tokens [begin, begin + length) of sample `sample` into tokens[], and the token after
  /// each (the target) into targets[], both int64. Throws on a token >= vocab_size, naming file
  /// offset and value.
  void read(int64_t sample, int64_t begin, int64_t length, int64_t* tokens, int64_t* targets) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Advances by one sample, into the next epoch if needed.
void advance(DataState& state, int64_t samples_per_epoch);

}  // namespace longnet
