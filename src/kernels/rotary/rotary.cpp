// Tables of rotary.h: angles and xPos factors of p = 4096 a + b from a double table of b and a
// per-thread double cursor of a, joined by the angle-sum formula (error 2e-7 at any position).
#include "kernels/rotary/rotary.h"

#include <cmath>

#include "core/error.h"

namespace longnet {
namespace {

constexpr int64_t kFine = 4096;  // positions in the fine table

}  // namespace

RotaryTable::RotaryTable(int64_t head_dim, const RotaryOptions& options)
    : head_dim_(head_dim), options_(options) {
  if (!enabled()) return;
  LN_CHECK(head_dim >= 2 && head_dim % 2 == 0, "rotary positions turn pairs: head_dim {} is odd",
           head_dim);
  LN_CHECK(options.base > 0 && options.xpos_scale_base > 0, "rotary base {}, xpos scale base {}",
           options.base, options.xpos_scale_base);
  const int64_t pairs = head_dim / 2;
  const bool xpos = options.position == Position::kXpos;
  for (int64_t i = 0; i < pairs; ++i) {
    frequency_.push_back(std::pow(options.base, -2.0 * i / head_dim));
    if (xpos)
      log_z_.push_back(std::log((2.0 * i + 0.4 * head_dim) / (1.4 * head_dim)) /
                       options.xpos_scale_base);
  }
  fine_cosine_.resize(kFine * pairs);
  fine_sine_.resize(kFine * pairs);
  for (auto& scale : fine_scale_) scale.resize(xpos ? kFine * pairs : 0);
  for (int64_t b = 0; b < kFine; ++b) {
    for (int64_t i = 0; i < pairs; ++i) {
      fine_cosine_[b * pairs + i] = std::cos(b * frequency_[i]);
      fine_sine_[b * pairs + i] = std::sin(b * frequency_[i]);
      if (!xpos) continue;
      fine_scale_[0][b * pairs + i] = std::exp(b * log_z_[i]);
      fine_scale_[1][b * pairs + i] = std::exp(-b * log_z_[i]);
    }
  }
}

void RotaryTable::factors(int64_t position, bool key, Cursor& cursor, float* cosine,
                          float* sine) const {
  const int64_t pairs = head_dim_ / 2;
  const int64_t b = ((position % kFine) + kFine) % kFine;
  const int64_t a = position - b;  // 4096 a
  if (cursor.coarse != a || static_cast<int64_t>(cursor.cosine.size()) != pairs) {
    cursor.coarse = a;
    cursor.cosine.resize(pairs);
    cursor.sine.resize(pairs);
    for (auto& scale : cursor.scale) scale.resize(log_z_.size());
    for (int64_t i = 0; i < pairs; ++i) {
      cursor.cosine[i] = std::cos(a * frequency_[i]);
      cursor.sine[i] = std::sin(a * frequency_[i]);
    }
    for (size_t i = 0; i < log_z_.size(); ++i) {
      cursor.scale[0][i] = std::exp(a * log_z_[i]);
      cursor.scale[1][i] = std::exp(-a * log_z_[i]);
    }
  }
  // cos(x + y) = cos x cos y - sin x sin y, sin(x + y) = sin x cos y + cos x sin y
  const double* cx = cursor.cosine.data();
  const double* sx = cursor.sine.data();
  const double* cy = fine_cosine_.data() + b * pairs;
  const double* sy = fine_sine_.data() + b * pairs;
  if (log_z_.empty()) {
    for (int64_t i = 0; i < pairs; ++i) {
      cosine[i] = static_cast<float>(cx[i] * cy[i] - sx[i] * sy[i]);
      sine[i] = static_cast<float>(sx[i] * cy[i] + cx[i] * sy[i]);
    }
    return;
  }
  const double* zx = cursor.scale[key].data();
  const double* zy = fine_scale_[key].data() + b * pairs;
  for (int64_t i = 0; i < pairs; ++i) {
    const double scale = zx[i] * zy[i];
    cosine[i] = static_cast<float>((cx[i] * cy[i] - sx[i] * sy[i]) * scale);
    sine[i] = static_cast<float>((sx[i] * cy[i] + cx[i] * sy[i]) * scale);
  }
}

}  // namespace longnet
