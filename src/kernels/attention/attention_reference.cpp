// The definition of attention.h in double sums: every score is computed where it is needed.
//
// Same arguments and effects as the kernels; no threads, no tiles, no tricks. O(rows^2 D) per
// segment and head, rotating rows anew for each use: for tests only.
#include <cmath>
#include <vector>

#include "core/bf16.h"
#include "kernels/attention/attention.h"

namespace longnet::reference {
namespace {

using Row = std::vector<double>;

template <typename T>
T& element(const TensorView& x, int64_t i0, int64_t i1, int64_t i2, int64_t i3 = 0) {
  return x.as<T>()[i0 * x.stride[0] + i1 * x.stride[1] + i2 * x.stride[2] + i3 * x.stride[3]];
}

/// Angle and xPos factor of one pair at a position relative to the origin.
struct Turn {
  double cosine = 1, sine = 0;
  Turn(const RotaryTable* rotary, int64_t pair, int64_t position, bool key) {
    if (rotary == nullptr || !rotary->enabled()) return;
    const RotaryOptions& o = rotary->options();
    const double head_dim = double(rotary->head_dim());
    const double angle = position * std::pow(o.base, -2.0 * pair / head_dim);
    double factor = 1;
    if (o.position == Position::kXpos)
      factor = std::pow((2.0 * pair + 0.4 * head_dim) / (1.4 * head_dim),
                        (key ? -1.0 : 1.0) * position / o.xpos_scale_base);
    cosine = std::cos(angle) * factor;
    sine = std::sin(angle) * factor;
  }
};

Row rotated(const Row& x, const RotaryTable* rotary, int64_t position, bool key) {
  Row y = x;
  for (size_t i = 0; i + 1 < x.size(); i += 2) {
    const Turn t(rotary, int64_t(i / 2), position, key);
    y[i] = x[i] * t.cosine - x[i + 1] * t.sine;
    y[i + 1] = x[i + 1] * t.cosine + x[i] * t.sine;
  }
  return y;
}

/// The gradient of rotated: the transposed map.
Row rotated_back(const Row& x, const RotaryTable* rotary, int64_t position, bool key) {
  Row y = x;
  for (size_t i = 0; i + 1 < x.size(); i += 2) {
    const Turn t(rotary, int64_t(i / 2), position, key);
    y[i] = x[i] * t.cosine + x[i + 1] * t.sine;
    y[i + 1] = x[i + 1] * t.cosine - x[i] * t.sine;
  }
  return y;
}

Row read_row(const TensorView& x, int64_t b, int64_t slot, int64_t h) {
  Row row(x.shape[3]);
  for (size_t d = 0; d < row.size(); ++d)
    row[d] = element_at(x, b * x.stride[0] + slot * x.stride[1] + h * x.stride[2] + int64_t(d));
  return row;
}
void add_row(const TensorView& x, int64_t b, int64_t slot, int64_t h, const Row& row) {
  for (size_t d = 0; d < row.size(); ++d)
    element<float>(x, b, slot, h, int64_t(d)) += static_cast<float>(row[d]);
}
double dot(const Row& a, const Row& b) {
  double sum = 0;
  for (size_t d = 0; d < a.size(); ++d) sum += a[d] * b[d];
  return sum;
}

/// One key row of a segment and head, as the queries see it.
struct Key {
  const KeySource* source = nullptr;
  int64_t slot = 0, row = 0, token = 0;
  Row key, value;  // key rotated
};

std::vector<Key> read_keys(const SegmentTask& task, const AttentionOptions& options, int64_t b,
                           int64_t h) {
  std::vector<Key> keys;
  for (const KeySource& source : task.keys) {
    for (int64_t i = 0; i < source.rows.count[h]; ++i) {
      Key k;
      k.source = &source;
      k.slot = source.rows.slot[h] + i * source.rows.step;
      k.row = source.rows.first[h] + i;
      k.token = task.segment.begin + options.head_offset[h] + k.row * options.dilation;
      k.key = read_row(source.key, b, k.slot, h);
      if (!source.positions_applied)
        k.key = rotated(k.key, options.rotary, k.token - task.origin, true);
      k.value = read_row(source.value, b, k.slot, h);
      keys.push_back(std::move(k));
    }
  }
  return keys;
}

/// One query row.
struct Query {
  int64_t slot = 0, row = 0, token = 0;
  Row query;  // rotated
};

Query read_query(const TensorView& query, const SegmentTask& task, const AttentionOptions& options,
                 int64_t b, int64_t h, int64_t i) {
  Query q;
  q.slot = task.queries.slot[h] + i * task.queries.step;
  q.row = task.queries.first[h] + i;
  q.token = task.segment.begin + options.head_offset[h] + q.row * options.dilation;
  q.query = rotated(read_row(query, b, q.slot, h), options.rotary, q.token - task.origin, false);
  return q;
}

bool sees(const AttentionOptions& options, int64_t b, const Query& q, const Key& k) {
  if (options.causal && k.row > q.row) return false;
  if (options.first_visible.defined() &&
      k.token < element<int64_t>(options.first_visible, b, q.slot, 0))
    return false;
  return !options.last_visible.defined() ||
         k.token <= element<int64_t>(options.last_visible, b, q.slot, 0);
}

}  // namespace

// 1. Forward: o and lse continue.
void attention_forward(const AttentionForward& tensors, const AttentionOptions& options) {
  const TensorView& query = tensors.query;
  for (const SegmentTask& task : tensors.segments)
    for (int64_t b = 0; b < query.shape[0]; ++b)
      for (int64_t h = 0; h < query.shape[2]; ++h) {
        const std::vector<Key> keys = read_keys(task, options, b, h);
        for (int64_t i = 0; i < task.queries.count[h]; ++i) {
          const Query q = read_query(query, task, options, b, h, i);
          float& lse = element<float>(tensors.lse, b, h, q.slot);
          std::vector<double> score(keys.size(), -INFINITY);
          double peak = lse;
          for (size_t j = 0; j < keys.size(); ++j) {
            if (sees(options, b, q, keys[j])) score[j] = options.scale * dot(q.query, keys[j].key);
            peak = std::max(peak, score[j]);
          }
          if (peak == -INFINITY) continue;
          // o' = (exp(lse) o + sum_j exp(s_j) v_j) / (exp(lse) + sum_j exp(s_j))
          double sum = std::exp(lse - peak);
          Row out = read_row(tensors.out, b, q.slot, h);
          for (double& o : out) o *= sum;
          for (size_t j = 0; j < keys.size(); ++j) {
            const double weight = std::exp(score[j] - peak);
            sum += weight;
            for (size_t d = 0; d < out.size(); ++d) out[d] += weight * keys[j].value[d];
          }
          for (size_t d = 0; d < out.size(); ++d)
            element<float>(tensors.out, b, q.slot, h, int64_t(d)) =
                static_cast<float>(out[d] / sum);
          lse = static_cast<float>(peak + std::log(sum));
        }
      }
}

// 2. Delta.
void attention_delta(const TensorView& delta, const TensorView& grad_out, const TensorView& out) {
  for (int64_t b = 0; b < out.shape[0]; ++b)
    for (int64_t t = 0; t < out.shape[1]; ++t)
      for (int64_t h = 0; h < out.shape[2]; ++h)
        element<float>(delta, b, h, t) =
            static_cast<float>(dot(read_row(grad_out, b, t, h), read_row(out, b, t, h)));
}

// 3. Backward, with the merged lse and delta.
void attention_backward(const AttentionBackward& tensors, const AttentionOptions& options) {
  const TensorView& query = tensors.query;
  for (const SegmentTask& task : tensors.segments)
    for (int64_t b = 0; b < query.shape[0]; ++b)
      for (int64_t h = 0; h < query.shape[2]; ++h) {
        const std::vector<Key> keys = read_keys(task, options, b, h);
        const size_t head_dim = size_t(query.shape[3]);
        std::vector<Row> grad_keys(keys.size(), Row(head_dim)), grad_values = grad_keys;
        for (int64_t i = 0; i < task.queries.count[h]; ++i) {
          const Query q = read_query(query, task, options, b, h, i);
          const double lse = element<float>(tensors.lse, b, h, q.slot);
          const double delta = element<float>(tensors.delta, b, h, q.slot);
          const Row grad_out = read_row(tensors.grad_out, b, q.slot, h);
          Row grad_query(head_dim);
          for (size_t j = 0; j < keys.size(); ++j) {
            if (!sees(options, b, q, keys[j])) continue;
            // s = scale <q, k>, p = exp(s - lse), o += p v
            const double p = std::exp(options.scale * dot(q.query, keys[j].key) - lse);
            const double grad_score = p * (dot(grad_out, keys[j].value) - delta);
            for (size_t d = 0; d < head_dim; ++d) {
              grad_values[j][d] += p * grad_out[d];
              grad_query[d] += options.scale * grad_score * keys[j].key[d];
              grad_keys[j][d] += options.scale * grad_score * q.query[d];
            }
          }
          add_row(tensors.grad_query, b, q.slot, h,
                  rotated_back(grad_query, options.rotary, q.token - task.origin, false));
        }
        for (size_t j = 0; j < keys.size(); ++j) {
          const KeySource& source = *keys[j].source;
          if (!source.positions_applied)
            grad_keys[j] =
                rotated_back(grad_keys[j], options.rotary, keys[j].token - task.origin, true);
          add_row(source.grad_key, b, keys[j].slot, h, grad_keys[j]);
          add_row(source.grad_value, b, keys[j].slot, h, grad_values[j]);
        }
      }
}

}  // namespace longnet::reference
