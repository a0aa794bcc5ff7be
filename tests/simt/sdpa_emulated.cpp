// attention_cudnn.h on a machine without a GPU: what cuDNN's SDPA computes, in double, straight
// from the definition, on strided views of host memory; results rounded as cuDNN stores them (bf16,
// lse in float). It refuses what the library documents as unsupported. Twins:
// src/kernels/attention/attention_cudnn.cpp; the stub, which the programs of tests/simt do not link
// because this comes first.
#include <cmath>
#include <vector>

#include "core/bf16.h"
#include "kernels/attention/attention_cudnn.h"
#include "simt/device_runtime_emulated.h"

namespace longnet {
namespace cudnn {
namespace {

std::string absent;  // why there is no cuDNN

using Row = std::vector<double>;

Row read(const void* data, int64_t at, int64_t head_dim) {
  Row row(head_dim);
  for (int64_t d = 0; d < head_dim; ++d) row[d] = to_float(static_cast<const bf16*>(data)[at + d]);
  return row;
}
void write(void* data, int64_t at, const Row& row) {
  for (size_t d = 0; d < row.size(); ++d)
    static_cast<bf16*>(data)[at + static_cast<int64_t>(d)] = to_bf16(static_cast<float>(row[d]));
}
double dot(const Row& a, const Row& b) {
  double sum = 0;
  for (size_t d = 0; d < a.size(); ++d) sum += a[d] * b[d];
  return sum;
}

/// All rows of one (batch, head).
std::vector<Row> read_all(const void* data, const sdpa::Strides& s, int64_t n, int64_t h,
                          int64_t rows, int64_t head_dim) {
  std::vector<Row> list;
  for (int64_t i = 0; i < rows; ++i)
    list.push_back(read(data, n * s.batch + h * s.head + i * s.row, head_dim));
  return list;
}

}  // namespace

std::string unavailable() { return absent; }

std::string refusal(Context&, const sdpa::Shape& s) {
  if (!absent.empty()) return absent;
  if (s.head_dim % 8 != 0 || s.head_dim > 256) return "head dimension";
  if (s.backward && s.query_rows == 1 && s.key_rows == 1) return "one query and one key";
  if (std::string defect = sdpa::known_defect(s); !defect.empty()) return defect;
  for (const sdpa::Strides& x : {s.query, s.key, s.value, s.grad_out})
    if (x.batch % 8 != 0 || x.head % 8 != 0 || x.row % 8 != 0) return "strides of 16 bytes";
  return "";
}

void run(Context& context, const sdpa::Shape& s, const Operands& o) {
  LN_CHECK(refusal(context, s).empty(), "{}", refusal(context, s));
  simt::finish_copies(context.stream());
  const sdpa::Strides queries = sdpa::packed_strides(s.heads, s.query_rows, s.head_dim);
  const sdpa::Strides keys = sdpa::packed_strides(s.heads, s.key_rows, s.head_dim);
  const auto sees = [&](int64_t i, int64_t j) { return !s.causal || j <= i; };
  for (int64_t n = 0; n < s.batch; ++n)
    for (int64_t h = 0; h < s.heads; ++h) {
      const std::vector<Row> q = read_all(o.query, s.query, n, h, s.query_rows, s.head_dim);
      const std::vector<Row> k = read_all(o.key, s.key, n, h, s.key_rows, s.head_dim);
      const std::vector<Row> v = read_all(o.value, s.value, n, h, s.key_rows, s.head_dim);
      float* const lse = o.lse + (n * s.heads + h) * s.query_rows;
      if (!s.backward) {
        for (int64_t i = 0; i < s.query_rows; ++i) {
          Row score(s.key_rows, -INFINITY), out(s.head_dim, 0.0);
          double peak = -INFINITY, sum = 0;
          for (int64_t j = 0; j < s.key_rows; ++j) {
            if (sees(i, j)) score[j] = s.scale * dot(q[i], k[j]);
            peak = std::fmax(peak, score[j]);
          }
          for (int64_t j = 0; j < s.key_rows; ++j) sum += std::exp(score[j] - peak);
          for (int64_t j = 0; j < s.key_rows; ++j)
            for (int64_t d = 0; d < s.head_dim; ++d)
              out[d] += std::exp(score[j] - peak) / sum * v[j][d];
          write(o.out, n * queries.batch + h * queries.head + i * queries.row, out);
          lse[i] = static_cast<float>(peak + std::log(sum));
        }
        continue;
      }
      const std::vector<Row> out = read_all(o.out, queries, n, h, s.query_rows, s.head_dim);
      const std::vector<Row> grad =
          read_all(o.grad_out, s.grad_out, n, h, s.query_rows, s.head_dim);
      std::vector<Row> grad_q(s.query_rows, Row(s.head_dim)), grad_k(s.key_rows, Row(s.head_dim)),
          grad_v = grad_k;
      for (int64_t i = 0; i < s.query_rows; ++i) {
        const double delta = dot(grad[i], out[i]);
        for (int64_t j = 0; j < s.key_rows; ++j) {
          if (!sees(i, j)) continue;
          const double p = std::exp(s.scale * dot(q[i], k[j]) - lse[i]);
          const double grad_score = p * (dot(grad[i], v[j]) - delta);
          for (int64_t d = 0; d < s.head_dim; ++d) {
            grad_v[j][d] += p * grad[i][d];
            grad_q[i][d] += s.scale * grad_score * k[j][d];
            grad_k[j][d] += s.scale * grad_score * q[i][d];
          }
        }
      }
      for (int64_t i = 0; i < s.query_rows; ++i)
        write(o.grad_query, n * queries.batch + h * queries.head + i * queries.row, grad_q[i]);
      for (int64_t j = 0; j < s.key_rows; ++j) {
        write(o.grad_key, n * keys.batch + h * keys.head + j * keys.row, grad_k[j]);
        write(o.grad_value, n * keys.batch + h * keys.head + j * keys.row, grad_v[j]);
      }
    }
}

}  // namespace cudnn

namespace simt {

NoCudnn::NoCudnn(const std::string& reason) { cudnn::absent = reason; }
NoCudnn::~NoCudnn() { cudnn::absent.clear(); }

}  // namespace simt
}  // namespace longnet
