// cuDNN behind attention_cudnn.h; the only file that includes the frontend.
//
// It has been compiled and linked on machines without a GPU. There tests/gpu/cudnn_plans_test.cpp
// has the library choose algorithms for described GPUs; nothing has been computed.
#include "kernels/attention/attention_cudnn.h"

#include <cudnn_frontend.h>
#include <fmt/format.h>

#include <map>
#include <memory>
#include <unordered_map>

#include "core/text.h"

namespace longnet::cudnn {
namespace {

namespace fe = cudnn_frontend;
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

/// Names of the operands inside a graph.
enum Uid : int64_t {
  kQuery = 1,
  kKey,
  kValue,
  kOut,
  kLse,
  kGradOut,
  kGradQuery,
  kGradKey,
  kGradValue
};

std::string failure(cudnnStatus_t status, const char* call) {
  if (status == CUDNN_STATUS_SUCCESS) return "";
  return fmt::format("{} failed: {}", call, cudnnGetErrorString(status));
}

/// A graph that reports the frontend's own share of the workspace.
struct Graph : fe::graph::Graph {
  int64_t frontend_bytes() const { return get_fe_workspace_size_subtree(); }
};

struct Prepared {
  Graph graph;
  std::string refusal;
};

/// Kept with the Context.
struct Library {
  cudnnHandle_t handle = nullptr;
  bool started = false;
  std::string failure;  // why it could not start
  std::map<sdpa::Shape, std::unique_ptr<Prepared>> prepared;

  Library() = default;
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() {
    prepared.clear();
    if (handle != nullptr) cudnnDestroy(handle);
  }
};

Library& library_of(Context& context) {
  Library& library = context.kept<Library>();
  if (!library.started) {
    library.started = true;
    library.failure = failure(cudnnCreate(&library.handle), "cudnnCreate");
    if (library.failure.empty())
      library.failure = failure(cudnnSetStream(library.handle, context.stream()), "cudnnSetStream");
  }
  return library;
}

/// The GPU that a graph is made for: the handle's, or one that is only described.
struct Target {
  cudnnHandle_t handle = nullptr;
  std::shared_ptr<const fe::DeviceProperties> described;
  int sm = 0;
};

std::vector<int64_t> strides(const sdpa::Strides& s) { return {s.batch, s.head, s.row, 1}; }

/// Fills the graph; returns why cuDNN does not want it, or nothing. For a described GPU the graph
/// cannot be run afterwards.
std::string build(Graph& graph, const sdpa::Shape& s, const Target& target) {
  graph.set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  if (target.described) graph.set_device_properties(target.described).set_sm_version(target.sm);
  const auto dims = [&](int64_t rows) {
    return std::vector<int64_t>{s.batch, s.heads, rows, s.head_dim};
  };
  const auto packed = [&](int64_t rows) {
    return strides(sdpa::packed_strides(s.heads, rows, s.head_dim));
  };
  const auto input = [&](int64_t uid, int64_t rows, const std::vector<int64_t>& stride) {
    return graph.tensor(
        fe::graph::Tensor_attributes().set_uid(uid).set_dim(dims(rows)).set_stride(stride));
  };
  const auto output = [&](const Tensor& tensor, int64_t uid, int64_t rows) {
    tensor->set_output(true).set_uid(uid).set_dim(dims(rows)).set_stride(packed(rows));
  };
  const auto lse_form = [&](fe::graph::Tensor_attributes& lse) {
    lse.set_uid(kLse)
        .set_dim({s.batch, s.heads, s.query_rows, 1})
        .set_stride({s.heads * s.query_rows, s.query_rows, 1, 1})
        .set_data_type(fe::DataType_t::FLOAT);
  };
  const Tensor query = input(kQuery, s.query_rows, strides(s.query));
  const Tensor key = input(kKey, s.key_rows, strides(s.key));
  const Tensor value = input(kValue, s.key_rows, strides(s.value));
  if (s.backward) {
    const Tensor out = input(kOut, s.query_rows, packed(s.query_rows));
    const Tensor grad_out = input(kGradOut, s.query_rows, strides(s.grad_out));
    fe::graph::Tensor_attributes lse;
    lse_form(lse);
    const auto gradients = graph.sdpa_backward(
        query, key, value, out, grad_out, graph.tensor(lse),
        fe::graph::SDPA_backward_attributes().set_attn_scale(s.scale).set_causal_mask(s.causal));
    output(gradients[0], kGradQuery, s.query_rows);
    output(gradients[1], kGradKey, s.key_rows);
    output(gradients[2], kGradValue, s.key_rows);
  } else {
    const auto results = graph.sdpa(query, key, value,
                                    fe::graph::SDPA_attributes()
                                        .set_generate_stats(true)
                                        .set_attn_scale(s.scale)
                                        .set_causal_mask(s.causal));
    output(results[0], kOut, s.query_rows);
    results[1]->set_output(true);
    lse_form(*results[1]);
  }
  const int64_t algorithm = sdpa::algorithm_workspace_bytes(s);
  fe::error_t status = graph.validate();
  if (status.is_good())
    status = target.described ? graph.build_operation_graph()
                              : graph.build_operation_graph(target.handle);
  if (status.is_good()) status = graph.create_execution_plans({fe::HeurMode_t::A});
  if (status.is_good()) status = graph.deselect_workspace_greater_than(algorithm).check_support();
  int64_t workspace = algorithm + graph.frontend_bytes();  // at most; of a described GPU
  if (status.is_good() && !target.described) {
    status = graph.build_plans();
    if (status.is_good()) status = graph.get_workspace_size(workspace);
  }
  if (status.is_bad()) return "cuDNN: " + one_line(status.get_message());
  const int64_t limit = sdpa::library_workspace_bytes(s);
  if (workspace > limit)
    return fmt::format("cuDNN wants {} bytes of scratch, the limit is {}", workspace, limit);
  return "";
}

/// build(), unless it is known not to be worth it; errors that the frontend throws are refusals,
/// too.
std::string refusal_after_build(Graph& graph, const sdpa::Shape& shape, const Target& target) {
  if (std::string defect = sdpa::known_defect(shape); !defect.empty()) return defect;
  try {
    return build(graph, shape, target);
  } catch (const std::exception& error) {
    return "cuDNN: " + one_line(error.what());
  }
}

Prepared& prepare(Context& context, const sdpa::Shape& shape) {
  Library& library = library_of(context);
  std::unique_ptr<Prepared>& prepared = library.prepared[shape];
  if (!prepared) {
    auto made = std::make_unique<Prepared>();
    made->refusal = library.failure.empty()
                        ? refusal_after_build(made->graph, shape, {library.handle, nullptr, 0})
                        : library.failure;
    prepared = std::move(made);
  }
  return *prepared;
}

}  // namespace

std::string unavailable() {
  // Before 9.5.1 the backward read grad_out with out's strides.
  constexpr size_t kOldest = 90600;
  static const size_t version = cudnnGetVersion();  // every call of attention asks
  if (version >= kOldest) return "";
  return fmt::format("cuDNN {}.{}.{} is older than 9.6.0", version / 10000, version / 100 % 100,
                     version % 100);
}

std::string refusal(Context& context, const sdpa::Shape& shape) {
  return prepare(context, shape).refusal;
}

std::string refusal(const DescribedGpu& gpu, const sdpa::Shape& shape) {
  auto properties = std::make_shared<fe::DeviceProperties>();
  fe::error_t status = properties->deserialize({gpu.json.begin(), gpu.json.end()});
  if (status.is_bad()) return "description of the GPU: " + one_line(status.get_message());
  Graph graph;
  return refusal_after_build(graph, shape, {nullptr, properties, gpu.sm});
}

void run(Context& context, const sdpa::Shape& shape, const Operands& o) {
  Prepared& prepared = prepare(context, shape);
  LN_CHECK(prepared.refusal.empty(), "{}", prepared.refusal);
  // The frontend's map takes pointers to non-const; it does not write what the graph only reads.
  std::unordered_map<int64_t, void*> pointers{{kQuery, const_cast<void*>(o.query)},
                                              {kKey, const_cast<void*>(o.key)},
                                              {kValue, const_cast<void*>(o.value)},
                                              {kOut, o.out},
                                              {kLse, o.lse}};
  if (shape.backward) {
    pointers[kGradOut] = const_cast<void*>(o.grad_out);
    pointers[kGradQuery] = o.grad_query;
    pointers[kGradKey] = o.grad_key;
    pointers[kGradValue] = o.grad_value;
  }
  fe::error_t status = prepared.graph.execute(library_of(context).handle, pointers, o.workspace);
  if (status.is_bad())
    throw Error("attention through cuDNN ({} of {} x {} heads, {} queries, {} keys, D {}): {}",
                shape.backward ? "backward" : "forward", shape.batch, shape.heads, shape.query_rows,
                shape.key_rows, shape.head_dim, one_line(status.get_message()));
}

}  // namespace longnet::cudnn
