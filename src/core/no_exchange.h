// The exchange of a sequence that lies on one rank: no segment straddles ranks, so any call is an
// error.
#pragma once

#include "core/key_value_exchange.h"

namespace longnet {

class NoExchange final : public KeyValueExchange {
 public:
  void start_gather(int, int, const TensorView&) override { refuse(); }
  void wait_gather(int, int) override { refuse(); }
  void start_reduce(int, int, const TensorView&) override { refuse(); }
  void wait_reduce(int, int) override { refuse(); }
  void progress() override {}

 private:
  [[noreturn]] static void refuse() { throw Error("one rank has nothing to exchange"); }
};

}  // namespace longnet
