// cudnn_plans_test: the installed cuDNN chooses algorithms for an H100 and an A100 that are only
// described to it, for the problems that the trainer gives it. Everything of our graphs but their
// execution: descriptions, limits of the workspace, refusals. It needs no GPU and no driver, and
// takes the descriptions where there is one, too. Exit code 77, with one line, where cuDNN or its
// libcuda cannot be loaded (tests/gpu/CMakeLists.txt names the toolkit's stub of it).
//
// devices/*.json have the fields that cuDNN 9.19 wants of
// CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION. They were written by hand: values are those of
// cudaDeviceProp that NVIDIA publishes for the card, its clocks, and limits of the compute
// capability; memory is rounded.
#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "kernels/attention/attention_cudnn.h"
#include "kernels/attention/attention_cudnn_graph.h"
#include "kernels/attention/segment_tasks.h"
#include "support/source_folder.h"

namespace longnet {
namespace {

using sdpa::Shape;

/// Attention of one model on one rank.
struct Model {
  int64_t tokens, heads, head_dim;
  std::vector<Branch> branches;
  int ranks = 1;
  bool causal = true;
  int64_t batch = 1;
};

std::vector<Model> models() {
  const std::vector<Branch> paper{{2048, 1}, {4096, 2}, {8192, 4}, {16384, 6}, {32768, 12}},
      base{{512, 1}, {2048, 4}, {8192, 16}},
      million{{2048, 1}, {16384, 8}, {131072, 64}, {1048576, 512}};
  std::vector<Model> list;
  for (const bool causal : {true, false})
    for (const int ranks : {1, 2, 8, 3}) {
      list.push_back({32768, 12, 64, paper, ranks, causal});
      list.push_back({32768, 16, 96, paper, ranks, causal});
      list.push_back({32768, 32, 80, paper, ranks, causal, 4});
      list.push_back({8192, 8, 128, base, ranks, causal, 16});
      list.push_back({1048576, 12, 64, million, ranks, causal});
      list.push_back({10007, 12, 64, paper, ranks, causal});  // short last segments
    }
  return list;
}

/// An address that nothing reads.
TensorView somewhere(DType type, std::initializer_list<int64_t> shape, int64_t at = 0) {
  return TensorView(reinterpret_cast<void*>((int64_t{1} << 40) + at), type, shape);
}

/// What attention_sdpa.cpp makes of a list of segments.
void add_shapes(std::set<Shape>& shapes, const std::vector<SegmentTask>& tasks, const Model& m,
                const TensorView& query, const TensorView& grad_out) {
  for (const bool in_place : {true, false})
    for (const sdpa::Group& group : sdpa::make_groups(tasks, {.causal = m.causal,
                                                             .in_place = in_place,
                                                             .batch = m.batch,
                                                             .head_dim = m.head_dim})) {
      Shape s = sdpa::packed_shape(group, m.batch, m.head_dim, 0.125f);
      const sdpa::Strides queries = s.query, keys = s.key;
      const auto strides = [&](const std::optional<sdpa::InPlace>& place,
                               const sdpa::Strides& packed) {
        return in_place && place ? place->strides : packed;
      };
      s.query = strides(sdpa::queries_in_place(group, tasks, query), queries);
      s.key = strides(sdpa::keys_in_place(group, tasks, &KeySource::key), keys);
      s.value = strides(sdpa::keys_in_place(group, tasks, &KeySource::value), keys);
      shapes.insert(s);
      s.backward = true;
      s.grad_out = strides(sdpa::queries_in_place(group, tasks, grad_out), queries);
      shapes.insert(s);
    }
}

std::set<Shape> trainer_shapes() {
  std::set<Shape> shapes;
  for (const Model& m : models())
    for (const int rank : std::set<int>{0, m.ranks - 1}) {
      const SequencePlan plan(m.tokens, m.ranks, rank, m.heads, m.branches,
                              HeadOffset::kInterleaved);
      const int64_t tokens = plan.local_tokens(), width = m.heads * m.head_dim;
      const auto part = [&](int64_t which) {  // query, key and value: thirds of one tensor
        TensorView x =
            somewhere(DType::kBF16, {m.batch, tokens, m.heads, m.head_dim}, 2 * which * width);
        x.stride = {3 * tokens * width, 3 * width, m.head_dim, 1};
        return x;
      };
      const TensorView grad_out = somewhere(DType::kBF16, {m.batch, tokens, m.heads, m.head_dim});
      for (int k = 0; k < static_cast<int>(m.branches.size()); ++k) {
        add_shapes(shapes, local_segment_tasks(plan, k, part(1), part(2), {}, {}), m, part(0),
                   grad_out);
        for (const GatheredSegment& gathered : plan.gathered_segments(k)) {
          const GatherLayout layout(plan, k, gathered, m.batch, m.head_dim);
          const TensorView buffer = somewhere(DType::kBF16, {layout.elements()});
          add_shapes(shapes, {gathered_segment_task(plan, k, gathered, layout, buffer, {})}, m,
                     part(0), grad_out);
        }
      }
    }
  return shapes;
}

Shape packed(int64_t batch, int64_t heads, int64_t query_rows, int64_t key_rows, int64_t head_dim,
             bool causal, bool backward) {
  Shape s;
  s.batch = batch;
  s.heads = heads;
  s.query_rows = query_rows;
  s.key_rows = key_rows;
  s.head_dim = head_dim;
  s.causal = causal;
  s.backward = backward;
  s.query = s.grad_out = sdpa::packed_strides(heads, query_rows, head_dim);
  s.key = s.value = sdpa::packed_strides(heads, key_rows, head_dim);
  return s;
}

/// The largest groups, the smallest, and what lies between.
std::set<Shape> other_shapes() {
  std::set<Shape> shapes;
  for (const bool causal : {false, true})
    for (const bool backward : {false, true}) {
      for (const auto& [rows, head_dim] : {std::pair<int64_t, int64_t>{131072, 64}, {65536, 128}})
        shapes.insert(packed(1, 4, rows, rows, head_dim, causal, backward));  // 2^25 elements
      shapes.insert(packed(32768, 1, 8, 8, 64, causal, backward));
      shapes.insert(packed(1, 32768, 8, 8, 64, causal, backward));
      for (const int64_t head_dim : {8, 16, 24, 32, 40, 64, 72, 80, 88, 96, 112, 128})
        for (const int64_t rows : {2, 33, 64, 65, 200, 512})
          shapes.insert(packed(4, 3, rows, rows, head_dim, causal, backward));
    }
  for (const bool backward : {false, true})
    for (const auto& [query_rows, key_rows] : {std::pair<int64_t, int64_t>{1, 33},
                                               {1, 4096},
                                               {33, 1},
                                               {77, 333},
                                               {333, 77},
                                               {128, 64},
                                               {64, 192},
                                               {2, 100000},
                                               {100000, 2}})
      shapes.insert(packed(4, 3, query_rows, key_rows, 64, false, backward));
  return shapes;
}

std::string text_of(const Shape& s) {
  return fmt::format("{} {} of {} x {} heads, {} queries, {} keys, D {}, row strides {} {} {} {}",
                     s.causal ? "causal" : "full", s.backward ? "backward" : "forward", s.batch,
                     s.heads, s.query_rows, s.key_rows, s.head_dim, s.query.row, s.key.row,
                     s.value.row, s.grad_out.row);
}

/// A GPU that need not be present. json: cuDNN's own description
/// (CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION); sm: 90 for compute capability 9.0.
struct DescribedGpu {
  std::string json;
  int sm = 0;
};

/// cudnn::refusal() for such a GPU: an algorithm is chosen and held against the limits, but not
/// compiled. Needs cuDNN 9.8 and no driver.
std::string refusal(const DescribedGpu& gpu, const Shape& shape) {
  auto properties = std::make_shared<cudnn::fe::DeviceProperties>();
  cudnn::fe::error_t read = properties->deserialize({gpu.json.begin(), gpu.json.end()});
  if (read.is_bad()) return "description of the GPU: " + one_line(read.get_message());
  return cudnn::refusal_after_build(shape, [&]() -> std::string {
    cudnn::Graph graph;
    graph.set_device_properties(properties).set_sm_version(gpu.sm);
    cudnn::describe(graph, shape);
    cudnn::fe::error_t status = graph.validate();
    if (status.is_good()) status = graph.build_operation_graph();
    if (status.is_good()) status = cudnn::choose_algorithm(graph, shape);
    if (status.is_bad()) return cudnn::refusal_of(status);
    return cudnn::workspace_refusal(sdpa::algorithm_workspace_bytes(shape) + graph.frontend_bytes(),
                                    shape);
  });
}

class Check {
 public:
  explicit Check(const std::string& name) : name_(name) {
    std::ifstream file(test::source_folder() + "/tests/gpu/devices/" + name + ".json");
    std::stringstream text;
    text << file.rdbuf();
    gpu_.json = text.str();
    gpu_.sm = nlohmann::json::parse(gpu_.json).at("deviceVer").get<int>() / 10;
  }

  /// part: of the refusal; "": none is wanted.
  void expect(const Shape& shape, const std::string& part) {
    const std::string why = refusal(gpu_, shape);
    ++(why.empty() ? taken_ : refused_);
    if (part.empty() ? why.empty() : why.find(part) != std::string::npos) return;
    ++failures_;
    fmt::print("FAILED: {}, {}: '{}', wanted '{}'\n", name_, text_of(shape), why, part);
  }

  int finish() const {
    fmt::print("{}: {} shapes taken, {} refused, {} failures\n", name_, taken_, refused_,
               failures_);
    return failures_;
  }

 private:
  std::string name_;
  DescribedGpu gpu_;
  int taken_ = 0, refused_ = 0, failures_ = 0;
};

int run() {
  if (std::string reason = cudnn::unavailable(); !reason.empty()) {
    fmt::print("SKIPPED: {}\n", reason);
    return 77;
  }
  for (const char* library :
       {"libcuda.so.1", "libcudnn_graph.so.9", "libcudnn_heuristic.so.9", "libcudnn_ops.so.9",
        "libcudnn_engines_precompiled.so.9", "libcudnn_engines_runtime_compiled.so.9"})
    if (dlopen(library, RTLD_NOW) == nullptr) {
      fmt::print("SKIPPED: {}\n", dlerror());
      return 77;
    }
  const std::set<Shape> trainer = trainer_shapes(), other = other_shapes();
  int failures = 0;
  for (const std::string name : {"h100", "a100"}) {
    Check check(name);
    for (const std::set<Shape>* shapes : {&trainer, &other})
      for (const Shape& shape : *shapes) check.expect(shape, sdpa::known_defect(shape));
    const bool old = name == "a100";
    for (const bool causal : {false, true}) {
      check.expect(packed(2, 2, 512, 512, 256, causal, false), "");
      check.expect(packed(2, 2, 512, 512, 256, causal, true),
                   old ? "less than or equal to 128" : "");
      check.expect(packed(2, 2, 512, 512, 12, causal, false), "multiple of 8");
      check.expect(packed(2, 2, 1, 1, 64, causal, true), "single query");
      check.expect(packed(2, 2, 192, 192, 64, causal, true), causal ? "" : "192 keys");
      Shape uneven = packed(2, 2, 512, 512, 64, causal, true);
      uneven.key.row += 4;
      check.expect(uneven, "cuDNN: ");
    }
    failures += check.finish();
  }
  // A cuDNN that cannot start, as it cannot with the stub of libcuda, is a refusal and no error.
  Context context({.device = {DeviceType::kCUDA, 0}, .threads = 1, .counting = true});
  for (int again = 0; again < 2; ++again) {
    const std::string refusal = cudnn::refusal(context, packed(2, 2, 512, 512, 64, true, true));
    if (refusal.empty() || refusal.starts_with("cudnnCreate failed: ")) continue;
    ++failures;
    fmt::print("FAILED: '{}', wanted that cudnnCreate failed\n", refusal);
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace longnet

int main() { return longnet::run(); }
