// What the simt tests share: running a body under every order, and expecting a defect to be found.
#pragma once

#include <gtest/gtest.h>

#include <regex>
#include <string>

#include "simt/emulator.h"

namespace longnet::simt_test {

inline constexpr simt::Order kOrders[] = {simt::Order::kAscending, simt::Order::kDescending,
                                          simt::Order::kRandom, simt::Order::kSkewed};

/// Calls body(order) under each order; a finding fails the test with its text. Numbers depend on
/// the order, so the plain program takes all four. Bounds do not, and a race is seen whichever of
/// two accesses comes first: the checked programs, which are slow, take one fixed and one random
/// order.
template <typename Body>
void under_every_order(uint64_t seed, Body body) {
  const bool checked = simt::race_checked() || simt::address_checked();
  for (simt::Order order : kOrders) {
    if (checked && order != simt::Order::kAscending && order != simt::Order::kRandom) continue;
    simt::set_order(order, seed);
    try {
      body(order);
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
  }
  simt::set_order(simt::Order::kAscending, 1);
}

/// Turns defect `bug` on and runs body under every order until a launch throws. Returns what was
/// thrown, "" if nothing was.
template <typename Body>
std::string found_with_defect(int bug, Body body) {
  const simt::Defect defect(bug);
  std::string found;
  for (simt::Order order : kOrders) {
    simt::set_order(order, 7);
    try {
      body();
    } catch (const std::exception& error) {
      found = error.what();
      break;
    }
  }
  simt::set_order(simt::Order::kAscending, 1);
  return found;
}

}  // namespace longnet::simt_test
