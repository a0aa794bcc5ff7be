// Runs the built program `longnet` as a user does: through a shell, in a folder of its own, with
// exit code, standard output and standard error kept apart. Also writes the small files it reads.
#pragma once

#include <stdio.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/source_folder.h"
#include "support/temporary_folder.h"

namespace longnet::test {

struct Outcome {
  int exit_code = -1;
  std::string out, err;
};

class Program {
 public:
  const TemporaryFolder& folder() const { return folder_; }
  std::string file(const std::string& name) const { return folder_.file(name); }

  /// arguments: as typed after `longnet`, for a shell whose folder is folder(). ranks > 1: mpirun.
  Outcome run(const std::string& arguments, int ranks = 1) const {
    return finish(start(arguments, ranks));
  }

  /// Runs the program on one rank after a shell command such as "ulimit -v 700000".
  Outcome run_limited(const std::string& arguments, const std::string& before) const {
    return finish(start(arguments, 1, before + " && "));
  }

  /// One rank each, eight at a time: starting MPI is mostly waiting.
  std::vector<Outcome> run_all(const std::vector<std::string>& command_lines) const {
    std::vector<Outcome> outcomes;
    for (size_t first = 0; first < command_lines.size(); first += 8) {
      std::vector<Started> batch;
      for (size_t i = first; i < std::min(first + 8, command_lines.size()); ++i)
        batch.push_back(start(command_lines[i], 1));
      for (const Started& started : batch) outcomes.push_back(finish(started));
    }
    return outcomes;
  }

  /// tiny.yaml: two layers, C 32, H 4, F 64, N 128, B 2, a text and a run of three steps.
  void write_tiny_config() const {
    std::string text;
    while (text.size() < 8000) text += "the cat sat on the mat and the dog lay by the log. ";
    folder_.write("text.txt", text);
    folder_.write(
        "tiny.yaml",
        "model: {dim: 32, layers: 2, heads: 4, ffn_dim: 64, branches: [[16, 1], [128, 4]]}\n"
        "data: {train: text.txt, cache: cache}\n"
        "train: {sequence_length: 128, batch_size: 2, steps: 3, evaluate_every: 0}\n"
        "optimizer: {warmup_steps: 1}\n"
        "checkpoint: {every: 0}\n"
        "run: {folder: run, progress: \"off\"}\n");
  }

 private:
  struct Started {
    FILE* pipe;
    std::string error_file;
  };

  Started start(const std::string& arguments, int ranks, const std::string& before = "") const {
    const std::string error_file = file(".stderr" + std::to_string(started_++));
    std::string command = "cd '" + folder_.path() + "' && " + before + "OMP_NUM_THREADS=1 ";
    if (ranks > 1)
      command += "'" + source_folder() + "/scripts/mpirun_local.sh' " + std::to_string(ranks) + " ";
    command += "'" + binary_folder() + "/longnet' " + arguments + " 2>" + error_file;
    FILE* pipe = ::popen(command.c_str(), "r");
    if (pipe == nullptr) throw std::runtime_error("no shell for: " + command);
    return {pipe, error_file};
  }

  static Outcome finish(const Started& started) {
    Outcome outcome;
    char block[4096];
    for (size_t n; (n = ::fread(block, 1, sizeof block, started.pipe)) > 0;)
      outcome.out.append(block, n);
    const int status = ::pclose(started.pipe);
    outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
    outcome.err = read_whole_file(started.error_file);
    return outcome;
  }

  TemporaryFolder folder_;
  mutable int started_ = 0;
};

/// One tensor of a .safetensors file, as bytes.
struct FileTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;

  std::vector<float> floats() const {
    std::vector<float> values(bytes.size() / sizeof(float));
    if (dtype == "F32") std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
};
using FileTensors = std::map<std::string, FileTensor>;

template <typename T>
FileTensor file_tensor(const std::string& dtype, std::vector<int64_t> shape,
                       const std::vector<T>& values) {
  return {dtype, std::move(shape),
          std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T))};
}

inline FileTensors read_tensors(const std::string& path) {
  const std::string bytes = read_whole_file(path);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  const auto header = nlohmann::json::parse(bytes.substr(8, header_bytes));
  FileTensors tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const int64_t begin = entry.at("data_offsets").at(0), end = entry.at("data_offsets").at(1);
    tensors[name] = {entry.at("dtype"), entry.at("shape"),
                     bytes.substr(8 + header_bytes + begin, end - begin)};
  }
  return tensors;
}

inline void write_tensors(const TemporaryFolder& folder, const std::string& name,
                          const FileTensors& tensors) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const auto& [key, tensor] : tensors) {
    header[key] = {{"dtype", tensor.dtype},
                   {"shape", tensor.shape},
                   {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  const std::string text = header.dump();
  const uint64_t header_bytes = text.size();
  folder.write(name, std::string(reinterpret_cast<const char*>(&header_bytes), 8) + text + data);
}

}  // namespace longnet::test
