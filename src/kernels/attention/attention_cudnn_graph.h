// One SDPA problem as a graph of cudnn-frontend, as far as no GPU is needed: its description, the
// choice of an algorithm, the limits. For attention_cudnn.cpp, and for a test that asks an installed
// cuDNN about GPUs that are not present (tests/gpu/cudnn_plans_test.cpp). Needs the frontend's
// headers; a file that includes this defines CUDNN_FRONTEND_SKIP_JSON_LIB or has nlohmann's.
#pragma once

#include <cudnn_frontend.h>
#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "core/text.h"
#include "kernels/attention/attention_cudnn_plan.h"

namespace longnet::cudnn {

namespace fe = cudnn_frontend;
using GraphTensor = std::shared_ptr<fe::graph::Tensor_attributes>;

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

/// A graph that reports the frontend's own share of the workspace.
struct Graph : fe::graph::Graph {
  int64_t frontend_bytes() const { return get_fe_workspace_size_subtree(); }
};

inline std::vector<int64_t> strides(const sdpa::Strides& s) { return {s.batch, s.head, s.row, 1}; }

/// Fills an empty graph with the problem; a GPU that the graph is to be made for is set before.
inline void describe(Graph& graph, const sdpa::Shape& s) {
  graph.set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
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
  const auto output = [&](const GraphTensor& tensor, int64_t uid, int64_t rows) {
    tensor->set_output(true).set_uid(uid).set_dim(dims(rows)).set_stride(packed(rows));
  };
  const auto lse_form = [&](fe::graph::Tensor_attributes& lse) {
    lse.set_uid(kLse)
        .set_dim({s.batch, s.heads, s.query_rows, 1})
        .set_stride({s.heads * s.query_rows, s.query_rows, 1, 1})
        .set_data_type(fe::DataType_t::FLOAT);
  };
  const GraphTensor query = input(kQuery, s.query_rows, strides(s.query));
  const GraphTensor key = input(kKey, s.key_rows, strides(s.key));
  const GraphTensor value = input(kValue, s.key_rows, strides(s.value));
  if (s.backward) {
    const GraphTensor out = input(kOut, s.query_rows, packed(s.query_rows));
    const GraphTensor grad_out = input(kGradOut, s.query_rows, strides(s.grad_out));
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
}

/// Chooses an algorithm for a described graph whose operation graph has been built.
inline fe::error_t choose_algorithm(Graph& graph, const sdpa::Shape& s) {
  fe::error_t status = graph.create_execution_plans({fe::HeurMode_t::A});
  if (status.is_bad()) return status;
  return graph.deselect_workspace_greater_than(sdpa::algorithm_workspace_bytes(s)).check_support();
}

inline std::string refusal_of(fe::error_t status) {
  return status.is_good() ? "" : "cuDNN: " + one_line(status.get_message());
}
inline std::string workspace_refusal(int64_t bytes, const sdpa::Shape& s) {
  const int64_t limit = sdpa::library_workspace_bytes(s);
  if (bytes <= limit) return "";
  return fmt::format("cuDNN wants {} bytes of scratch, the limit is {}", bytes, limit);
}

/// build(), unless the problem has a known defect; errors that the frontend throws are refusals,
/// too.
template <typename Build>
std::string refusal_after_build(const sdpa::Shape& shape, const Build& build) {
  if (std::string defect = sdpa::known_defect(shape); !defect.empty()) return defect;
  try {
    return build();
  } catch (const std::exception& error) {
    return "cuDNN: " + one_line(error.what());
  }
}

}  // namespace longnet::cudnn
