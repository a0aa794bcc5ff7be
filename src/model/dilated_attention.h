// DilatedAttention: a drop-in replacement for multi-head self-attention, projections included.
//
//   longnet::DilatedAttention attention(
//       {.dim = 512, .heads = 8, .branches = {{64, 2}}, .qk_norm = true});
//   std::vector<float> y = attention.forward(x, 32, 8192);   // x, y: [32, 8192, 512]
//   std::vector<float> grad_x = attention.backward(grad_y);  // and attention.gradients()
//
// y = out_proj(sub-norm(dilated attention(q_proj(x), k_proj(x), v_proj(x)))). Weights and kernels
// are those of a LongNet block. By default the whole sequence is on this rank; set_sequence()
// splits it over ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/context.h"
#include "core/key_value_exchange.h"
#include "model/parameters.h"

namespace longnet {

struct DilatedAttentionConfig {
  int64_t dim = 512;                        // C
  int64_t heads = 8;                        // H; D = C / H, 8..256
  std::vector<Branch> branches{{2048, 1}};  // (segment_length, dilation); one or more
  bool causal = true;
  std::string head_offset = "interleaved";  // interleaved | blocked
  std::string position = "none";            // xpos | rope | none
  double rope_base = 10000;
  double xpos_scale_base = 512;  // tokens
  bool qk_norm = false;          // LayerNorm per head on queries and keys
  bool sub_norm = false;         // LayerNorm before out_proj (Magneto)
  bool bias = true;
  double layer_norm_eps = 1e-5;
  uint64_t seed = 1;  // of the initial weights
  int threads = 0;    // 0: OpenMP's default
};

class DilatedAttention {
 public:
  /// Throws Error for settings that check_config() refuses (head dimension, xPos without a mask,
  /// ...).
  explicit DilatedAttention(const DilatedAttentionConfig& config);
  ~DilatedAttention();
  DilatedAttention(DilatedAttention&&) noexcept;
  DilatedAttention& operator=(DilatedAttention&&) noexcept;

  /// Splits sequences over ranks from the next forward on. plan: which tokens are local; its heads
  /// and branches must be the config's. batch: B of the exchange. exchange must outlive this.
  void set_sequence(const SequencePlan& plan, KeyValueExchange& exchange);

  /// x [B, L, C] -> y [B, L, C]; L is N without set_sequence. Keeps what backward needs;
  /// reallocates memory only when B or L change.
  void forward(std::span<float> y, std::span<const float> x, int64_t batch, int64_t tokens);
  std::vector<float> forward(std::span<const float> x, int64_t batch, int64_t tokens);
  /// Gradient of the last forward: grad_y [B, L, C] -> grad_x; adds weight gradients to
  /// gradients(). Each call needs its own forward; otherwise it throws Error.
  void backward(std::span<float> grad_x, std::span<const float> grad_y);
  std::vector<float> backward(std::span<const float> grad_y);

  /// Flat parameters and gradients (see layout()); views of single tensors by name:
  /// "q_proj.weight", "out_proj.bias", "q_norm.weight", ...
  std::span<float> parameters();
  std::span<float> gradients();
  std::span<float> parameter(const std::string& name);
  std::span<float> gradient(const std::string& name);
  std::vector<std::string> parameter_names() const;
  void zero_gradients();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace longnet
