// CUDA optimizer arithmetic against the double reference over several steps; sums that do not
// depend on how a whole is cut.
#include "kernels/optimizer/optimizer.h"
#include "simt/device_values.h"
#include "simt/support.h"
#include "support/compare.h"

namespace longnet::simt_test {
namespace {

using test::difference;
using test::error_ratio;
using test::random_values;

TensorView flat(std::vector<float>& values) {
  return TensorView(values.data(), DType::kF32, {static_cast<int64_t>(values.size())});
}

struct Workspace {
  explicit Workspace(const Context& context, int64_t n)
      : memory(DType::kI64, optimizer_workspace_bytes(context, n) / 8) {}
  DeviceValues memory;
};

TEST(OptimizerSimt, FollowsTheReference) {
  Context context = gpu_context();
  for (const bool stable : {false, true})
    for (const int64_t n : {1, 7, 1000, 40001})
      for (const int64_t shift : {0, 1}) {  // addresses with and without 16-byte alignment
        std::vector<float> w = random_values(n, 1), m(n, 0.0f), v(n, 0.0f);
        const std::vector<float> zeros(n + shift, 0.0f);
        std::vector<float> start(n + shift);
        std::copy(w.begin(), w.end(), start.begin() + shift);
        const DeviceValues d_w(DType::kF32, start), d_m(DType::kF32, zeros),
            d_v(DType::kF32, zeros);
        const Workspace workspace(context, n);
        const auto part = [&](const DeviceValues& d) { return d.flat().slice(0, shift, n); };
        for (int64_t step = 1; step <= 4; ++step) {
          std::vector<float> g = random_values(n, 10 + step, step == 3 ? 50.0f : 0.1f);
          std::vector<float> moved(n + shift);
          std::copy(g.begin(), g.end(), moved.begin() + shift);
          const DeviceValues d_g(DType::kF32, moved);
          const AdamWOptions options{.learning_rate = 0.01,
                                     .beta1 = 0.9,
                                     .beta2 = 0.98,
                                     .eps = 1e-8,
                                     .weight_decay = 0.1,
                                     .step = step,
                                     .gradient_scale = 0.5};
          if (stable) {
            const double expected =
                reference::stable_adamw_update(flat(w), flat(m), flat(v), flat(g), options);
            const double rms = stable_adamw_update(context, part(d_w), part(d_m), part(d_v),
                                                   part(d_g), options, workspace.memory.data());
            EXPECT_NEAR(rms, expected, 1e-5 * expected);
          } else {
            reference::adamw_update(flat(w), flat(m), flat(v), flat(g), options);
            adamw_update(context, part(d_w), part(d_m), part(d_v), part(d_g), options);
          }
          context.wait();
        }
        const auto values = [&](const DeviceValues& d) {
          std::vector<float> all = d.floats();
          return std::vector<float>(all.begin() + shift, all.end());
        };
        EXPECT_LE(error_ratio(difference(values(d_w), w)), 1) << n;
        EXPECT_LE(error_ratio(difference(values(d_m), m)), 1) << n;
        EXPECT_LE(error_ratio(difference(values(d_v), v)), 1) << n;
      }
}

/// An element gets the same bits wherever its range begins: in packs of four, or one by one.
TEST(OptimizerSimt, BitsDoNotDependOnTheRangesAlignment) {
  Context context = gpu_context();
  constexpr int64_t kElements = 1003;
  const std::vector<float> weight = random_values(kElements, 1),
                           m = random_values(kElements, 2, 0.1f),
                           g = random_values(kElements, 3, 3.0f);
  std::vector<float> v = random_values(kElements, 4, 0.1f);
  for (float& x : v) x = std::abs(x);
  const AdamWOptions options{.learning_rate = 0.013,
                             .beta1 = 0.9,
                             .beta2 = 0.98,
                             .eps = 1e-8,
                             .weight_decay = 0.1,
                             .step = 3,
                             .gradient_scale = 0.7};
  for (const bool stable : {false, true}) {
    const auto after = [&](int64_t shift) {
      const auto moved = [&](const std::vector<float>& values) {
        std::vector<float> all(shift, 0.0f);
        all.insert(all.end(), values.begin(), values.end());
        return all;
      };
      const DeviceValues d_w(DType::kF32, moved(weight)), d_m(DType::kF32, moved(m)),
          d_v(DType::kF32, moved(v)), d_g(DType::kF32, moved(g));
      const auto part = [&](const DeviceValues& d) { return d.flat().slice(0, shift, kElements); };
      const Workspace workspace(context, kElements);
      if (stable)
        stable_adamw_update(context, part(d_w), part(d_m), part(d_v), part(d_g), options,
                            workspace.memory.data());
      else
        adamw_update(context, part(d_w), part(d_m), part(d_v), part(d_g), options);
      context.wait();
      std::vector<float> all;
      for (const DeviceValues* d : {&d_w, &d_m, &d_v}) {
        const std::vector<float> values = d->floats();
        all.insert(all.end(), values.begin() + shift, values.end());
      }
      return all;
    };
    const std::vector<float> aligned = after(0);
    for (const int64_t shift : {1, 2, 3}) EXPECT_EQ(after(shift), aligned) << stable << shift;
  }
}

double squares(const std::vector<float>& values) {
  Context context = gpu_context();
  const int64_t n = static_cast<int64_t>(values.size());
  const DeviceValues d(DType::kF32, values);
  const Workspace workspace(context, n);
  return sum_of_squares(context, d.flat(), workspace.memory.data());
}

TEST(OptimizerSimt, SumsDoNotDependOnTheParts) {
  Context context = gpu_context();
  int index = 0;
  for (const int64_t offset : {0, 100, 16300})
    for (const int64_t n : {1, 63, 900, 40001}) {
      ++index;
      simt::set_order(kOrders[index % 4], uint64_t(index));
      const SumRange whole{offset, offset + n};
      std::vector<float> g = random_values(n, 1, 3.0f), v0 = random_values(n, 2);
      for (float& value : v0) value = std::abs(value) * 0.1f;
      const AdamWOptions options{.learning_rate = 0.01,
                                 .beta1 = 0.9,
                                 .beta2 = 0.98,
                                 .eps = 1e-8,
                                 .weight_decay = 0.1,
                                 .step = 3,
                                 .gradient_scale = 1,
                                 .offset = offset};
      const Workspace workspace(context, n);
      const DeviceValues d_g(DType::kF32, g);
      double expected_squares = 0, expected_ratio = 0;
      for (const int cuts : {1, 2, 3}) {
        std::vector<SumRange> parts;
        int64_t begin = whole.begin;
        for (int i = 1; i <= cuts; ++i) {
          int64_t end = i == cuts ? whole.end : (whole.begin + n * i / cuts) / kSumCell * kSumCell;
          end = std::max(begin, end);
          parts.push_back({begin, end});
          begin = end;
        }
        const DeviceValues d_v(DType::kF32, v0);
        std::vector<double> ratio, sums;
        for (const SumRange& part : parts) {
          if (part.begin == part.end) continue;
          const auto view = [&](const DeviceValues& d) {
            return d.flat().slice(0, part.begin - offset, part.end - part.begin);
          };
          std::vector<double> terms(sum_term_count(whole, part));
          stable_adamw_terms(context, terms, view(d_v), view(d_g), options, whole, part,
                             workspace.memory.data());
          ratio.insert(ratio.end(), terms.begin(), terms.end());
          sum_of_squares_terms(context, terms, view(d_g), whole, part, workspace.memory.data());
          sums.insert(sums.end(), terms.begin(), terms.end());
        }
        const double sum = add_sum_terms(whole, parts, sums);
        const double ratio_sum = add_sum_terms(whole, parts, ratio);
        EXPECT_NEAR(sum, reference::sum_of_squares(flat(g)), 1e-12 * sum);
        if (cuts == 1) expected_squares = sum, expected_ratio = ratio_sum;
        EXPECT_EQ(sum, expected_squares) << offset << " " << n << " in " << cuts;
        EXPECT_EQ(ratio_sum, expected_ratio) << offset << " " << n << " in " << cuts;
        if (offset == 0) {
          EXPECT_EQ(sum, squares(g));
        }
      }
    }
  simt::set_order(simt::Order::kAscending, 1);
  std::vector<float> broken = random_values(20000, 5);
  broken[17000] = NAN;
  EXPECT_FALSE(std::isfinite(squares(broken)));
}

TEST(OptimizerSimt, MissingBarrierIsFound) {
  if (!simt::race_checked()) GTEST_SKIP() << "only in the race build";
  const std::string found = found_with_defect(70, [] { squares(random_values(20000, 5)); });
  EXPECT_NE(found.find("optimizer_cuda.cu:"), std::string::npos) << found;
}

}  // namespace
}  // namespace longnet::simt_test
