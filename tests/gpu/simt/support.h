// Stands in for tests/simt/support.h in gpu_test: every order is one more run on the GPU, so tests
// that compare the bits of all orders compare those of repeated runs.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "simt/emulator.h"

namespace longnet::simt_test {

inline constexpr simt::Order kOrders[] = {simt::Order::kAscending, simt::Order::kDescending,
                                          simt::Order::kRandom, simt::Order::kSkewed};

/// Calls body(order) twice; what it throws fails the test.
template <typename Body>
void under_every_order(uint64_t, Body body) {
  for (const simt::Order order : {simt::Order::kAscending, simt::Order::kDescending}) {
    try {
      body(order);
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
  }
}

template <typename Body>
std::string found_with_defect(int, Body) {
  simt::skip_rest("kernels of a GPU build have no defects");
}

}  // namespace longnet::simt_test
