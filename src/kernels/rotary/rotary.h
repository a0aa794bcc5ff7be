// Rotary positions (RoPE, arXiv 2104.09864) and xPos (arXiv 2212.10554), applied row by row while
// rows are packed for attention or for the gather.
//
// Adjacent pairs (2i, 2i+1) of a row of D elements at position p are rotated by the angle p
// base^(-2i/D). With xPos a query's pair is also multiplied by z_i^(p/s), a key's by z_i^(-p/s),
// z_i = (2i + 0.4 D) / (1.4 D). Only position differences matter, so positions are measured from
// the middle of each segment: angles stay exact at any distance from the start of the sequence, and
// xPos factors stay within float32 (see docs). Angles are combined in double from p = 4096 a + b.
// This file knows nothing of segments: the caller subtracts the origin.
#pragma once

#include <cstdint>
#include <vector>

namespace longnet {

enum class Position { kNone, kRope, kXpos };

struct RotaryOptions {
  Position position = Position::kNone;
  double base = 10000.0;           // of RoPE's angles
  double xpos_scale_base = 512.0;  // s, tokens
};

/// Immutable tables; shared by all threads.
class RotaryTable {
 public:
  /// head_dim: D, even unless position is kNone.
  RotaryTable(int64_t head_dim, const RotaryOptions& options);

  bool enabled() const { return options_.position != Position::kNone; }
  int64_t head_dim() const { return head_dim_; }
  const RotaryOptions& options() const { return options_; }

  /// Writes cosine[D/2] and sine[D/2] of one position, multiplied by the xPos factor of a query
  /// (key = false) or a key (key = true). position: tokens from the segment's middle, any sign. A
  /// `Cursor` remembers the coarse part of the angle between calls; use one per thread.
  struct Cursor {
    int64_t coarse = INT64_MIN;        // 4096 a
    std::vector<double> cosine, sine;  // [D/2] of 4096 a
    std::vector<double> scale[2];      // [D/2] xPos factor of 4096 a: of a query, of a key
  };
  void factors(int64_t position, bool key, Cursor& cursor, float* cosine, float* sine) const;

 private:
  int64_t head_dim_;
  RotaryOptions options_;
  std::vector<double> frequency_;    // [D/2] radians per token
  std::vector<double> log_z_;        // [D/2] log(z_i) / s; empty without xPos
  std::vector<double> fine_cosine_;  // [4096, D/2] of b
  std::vector<double> fine_sine_;
  std::vector<double> fine_scale_[2];  // [4096, D/2] xPos factor of b: of a query, of a key
};

/// out[j] = rotated in[j], in place allowed. forward: y = f R x. One row of `pairs` pairs.
inline void rotate_row(float* out, const float* in, const float* cosine, const float* sine,
                       int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) {
    const float a = in[2 * i], b = in[2 * i + 1];
    out[2 * i] = a * cosine[i] - b * sine[i];
    out[2 * i + 1] = b * cosine[i] + a * sine[i];
  }
}

/// out[j] += transposed map of in: the gradient, f R^T grad_y.
inline void rotate_row_transposed_add(float* out, const float* in, const float* cosine,
                                      const float* sine, int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) {
    const float a = in[2 * i], b = in[2 * i + 1];
    out[2 * i] += a * cosine[i] + b * sine[i];
    out[2 * i + 1] += b * cosine[i] - a * sine[i];
  }
}

}  // namespace longnet
