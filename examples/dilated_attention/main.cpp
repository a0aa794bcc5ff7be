// Dilated attention in place of standard attention: forward and backward on [B, N, C], a few gradient
// steps towards a target. Prints the loss of each.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "model/dilated_attention.h"

int main() {
  const int64_t batch = 4, tokens = 1024, dim = 512;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(batch * tokens * dim), target(x.size());
  for (float& v : x) v = normal(random);
  for (float& v : target) v = 0.1f * normal(random);

  // The five lines: segments of 64 tokens, every second token of each.
  longnet::DilatedAttention attention(
      {.dim = dim, .heads = 8, .branches = {{64, 2}}, .qk_norm = true});
  double first = 0, last = 0;
  for (int step = 0; step < 5; ++step) {
    const std::vector<float> y = attention.forward(x, batch, tokens);
    std::vector<float> grad_y(y.size());
    double loss = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      const float difference = y[i] - target[i];
      loss += 0.5 * difference * difference / static_cast<double>(y.size());
      grad_y[i] = difference / static_cast<float>(y.size());
    }
    attention.zero_gradients();
    const std::vector<float> grad_x = attention.backward(grad_y);  // for the layers before
    for (size_t i = 0; i < attention.parameters().size(); ++i)
      attention.parameters()[i] -= 200.0f * attention.gradients()[i];
    std::printf("step %d: loss %.6f, gradient of x[0] %.3g\n", step, loss, grad_x[0]);
    if (step == 0) first = loss;
    last = loss;
  }
  return last < first ? EXIT_SUCCESS : EXIT_FAILURE;
}
