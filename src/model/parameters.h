// Parameters of a LongNet: names, shapes and positions in one flat float32 buffer; initialisation.
//
// The buffer is in backward order (the output projection first, the embedding last), so ranges of
// the gradient buffer, which has the same layout, become final from front to back. Tensors that one
// matrix product uses together (q, k, v; fc1, gate) are adjacent without padding; each such group
// begins on a 256-byte boundary. Names and shapes are those of the reference's parameter_shapes().
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/config.h"
#include "core/context.h"
#include "core/tensor.h"

namespace longnet {

enum class Initialiser { kZero, kOne, kUniform, kNormal };

struct ParameterInfo {
  std::string name;            // "layers.0.self_attn.q_proj.weight"
  std::vector<int64_t> shape;  // one or two axes
  int64_t offset = 0;          // elements from the start of the flat buffer
  int64_t elements = 0;
  bool is_matrix = false;  // weight decay applies to matrices only
  Initialiser initialiser = Initialiser::kZero;
  double scale = 0;  // bound of kUniform, standard deviation of kNormal
};

/// Elements [begin, end) of the flat buffer.
struct ParameterRange {
  int64_t begin = 0;
  int64_t end = 0;
};

class ParameterLayout {
 public:
  explicit ParameterLayout(const ModelConfig& config);

  /// Length of the flat buffer in elements, padding included.
  int64_t elements() const { return elements_; }
  /// Sum of the tensors' elements, padding not included.
  int64_t parameter_count() const { return parameter_count_; }
  /// In buffer order.
  const std::vector<ParameterInfo>& parameters() const { return parameters_; }
  /// Throws Error naming the parameter if it does not exist.
  const ParameterInfo& find(const std::string& name) const;
  bool contains(const std::string& name) const { return index_.count(name) != 0; }

  /// View of one parameter in a flat buffer with this layout, f32 or a bf16 copy; undefined if the
  /// model has no such parameter (an absent bias).
  TensorView view(const TensorView& flat, const std::string& name) const;
  /// View of `count` adjacent tensors of equal width as one matrix (or vector), starting at
  /// first_name.
  TensorView fused_view(const TensorView& flat, const std::string& first_name, int64_t count) const;

  /// The buffer's parts in the order in which the backward finishes them: head, layers from the
  /// last to the first, embedding.
  ParameterRange head_range() const { return {0, layer_begin_.back()}; }
  ParameterRange layer_range(int64_t layer) const;
  ParameterRange embedding_range() const { return {layer_begin_[0], elements_}; }

 private:
  struct Group;
  void add_group(const std::vector<ParameterInfo>& group);

  std::vector<ParameterInfo> parameters_;
  std::unordered_map<std::string, size_t> index_;
  std::vector<int64_t> layer_begin_;  // see layer_range; [layers + 1]
  int64_t elements_ = 0;
  int64_t parameter_count_ = 0;
};

/// Magneto's initialisation (arXiv 2210.06423): Xavier-uniform matrices; with sub_ln, v_proj,
/// out_proj, fc1, gate and fc2 are scaled by sqrt(log(2 layers)); zero biases, unit norms,
/// embedding N(0, 1/C). Each element depends on (seed, name, index) alone. Padding becomes zero.
void initialise_parameters(Context& context, const ParameterLayout& layout, const TensorView& flat,
                           uint64_t seed);

}  // namespace longnet
