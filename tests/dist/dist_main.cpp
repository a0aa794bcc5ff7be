// main() of the rank tests: every rank runs all cases; a failure on any rank fails the program.
//
// Rank 0 prints as usual, the others only their failures. An exception that leaves a test ends all
// ranks at once, so that none waits in a collective.
#include <gtest/gtest.h>

#include <cstdio>
#include <exception>
#include <string>

#include "dist/communicator.h"

namespace {

class FailurePrinter : public testing::EmptyTestEventListener {
 public:
  explicit FailurePrinter(int rank) : rank_(rank) {}
  void OnTestStart(const testing::TestInfo& test) override {
    // Remembered here: asking UnitTest while it reports a failure would lock its mutex twice.
    test_ = std::string(test.test_suite_name()) + "." + test.name();
  }
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "rank %d: %s: %s:%d: %s\n", rank_, test_.c_str(),
                 result.file_name() ? result.file_name() : "?", result.line_number(),
                 result.message());
  }

 private:
  int rank_;
  std::string test_ = "outside of a test";
};

}  // namespace

int main(int argc, char** argv) {
  try {
    longnet::MpiSession session(&argc, &argv);
    testing::InitGoogleTest(&argc, argv);
    GTEST_FLAG_SET(catch_exceptions, false);
    const auto world = longnet::make_mpi_communicator();
    if (world->rank() != 0) {
      testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
      delete listeners.Release(listeners.default_result_printer());
      listeners.Append(new FailurePrinter(world->rank()));
    }
    double failed = RUN_ALL_TESTS() != 0;
    world->all_reduce_max({&failed, 1});
    return failed != 0 ? 1 : 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    std::fflush(nullptr);
    longnet::MpiSession::abort(1);
  }
}
