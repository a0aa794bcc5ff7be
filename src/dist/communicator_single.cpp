// The transport of one rank: every collective is finished when it starts. No library, no copies.
#include "dist/communicator.h"

namespace longnet {
namespace {

class SingleCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string transport() const override { return "single"; }
  int local_rank() const override { return 0; }
  int local_size() const override { return 1; }

  std::unique_ptr<Communicator> split(int64_t color, int64_t) override {
    if (color < 0) return nullptr;
    return std::make_unique<SingleCommunicator>();
  }

  void barrier() override {}
  void broadcast(void*, int64_t bytes, int root) override {
    LN_CHECK(root == 0 && bytes >= 0, "broadcast of {} bytes from rank {} of 1", bytes, root);
  }
  void all_reduce_sum(std::span<double>) override {}
  void all_reduce_sum(std::span<int64_t>) override {}
  void all_reduce_max(std::span<double>) override {}
  std::vector<std::string> all_gather_strings(const std::string& mine) override { return {mine}; }

  Request start_all_reduce_sum(float*, int64_t n) override {
    count_all_reduce(n);
    return 0;
  }
  Request start_all_gather(void*, std::span<const int64_t> begin_bytes) override {
    count_all_gather(begin_bytes);
    return 0;
  }
  Request start_reduce_scatter(float*, std::span<const int64_t> begin, float*) override {
    count_reduce_scatter(begin);
    return 0;
  }
  bool test(Request request) override {
    wait(request);
    return true;
  }
  void wait(Request request) override { LN_CHECK(request == 0, "unknown request {}", request); }
  void progress() override {}
};

}  // namespace

std::unique_ptr<Communicator> make_single_communicator() {
  return std::make_unique<SingleCommunicator>();
}

}  // namespace longnet
