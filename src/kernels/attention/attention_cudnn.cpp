// cuDNN behind attention_cudnn.h: graphs are kept with the Context, and run.
//
// It has been compiled and linked on machines without a GPU. There tests/gpu/cudnn_plans_test.cpp
// has the library choose algorithms for described GPUs; nothing has been computed.
#include "kernels/attention/attention_cudnn.h"

#include <fmt/format.h>

#include <map>
#include <memory>
#include <unordered_map>

#include "core/text.h"
#include "kernels/attention/attention_cudnn_graph.h"

namespace longnet::cudnn {
namespace {

std::string failure(cudnnStatus_t status, const char* call) {
  if (status == CUDNN_STATUS_SUCCESS) return "";
  return fmt::format("{} failed: {}", call, cudnnGetErrorString(status));
}

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

/// Makes the graph ready to run; returns why cuDNN does not want it, or nothing.
std::string build(Graph& graph, const sdpa::Shape& shape, cudnnHandle_t handle) {
  describe(graph, shape);
  fe::error_t status = graph.validate();
  if (status.is_good()) status = graph.build_operation_graph(handle);
  if (status.is_good()) status = choose_algorithm(graph, shape);
  if (status.is_good()) status = graph.build_plans();
  int64_t workspace = 0;
  if (status.is_good()) status = graph.get_workspace_size(workspace);
  if (status.is_bad()) return refusal_of(status);
  return workspace_refusal(workspace, shape);
}

Prepared& prepare(Context& context, const sdpa::Shape& shape) {
  Library& library = library_of(context);
  std::unique_ptr<Prepared>& prepared = library.prepared[shape];
  if (!prepared) {
    auto made = std::make_unique<Prepared>();
    made->refusal = library.failure;
    if (library.failure.empty())
      made->refusal =
          refusal_after_build(shape, [&] { return build(made->graph, shape, library.handle); });
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
