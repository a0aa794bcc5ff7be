// The transport of `longnet plan`: behaves like rank p of P of a job that does not exist.
//
// It counts the bytes that the mpi transport would send, with the same functions, and touches no
// buffer: addresses need not point to memory. Sums and maxima stay this rank's own values.
#include "dist/communicator.h"

namespace longnet {
namespace {

class CountingCommunicator final : public Communicator {
 public:
  CountingCommunicator(int size, int rank) : size_(size), rank_(rank) {
    LN_CHECK(size >= 1 && rank >= 0 && rank < size, "rank {} of {}", rank, size);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string transport() const override { return "counting"; }
  int local_rank() const override { return rank_; }
  int local_size() const override { return size_; }

  std::unique_ptr<Communicator> split(int64_t color, int64_t) override {
    if (color < 0) return nullptr;
    throw Error("the counting transport cannot know the other ranks' groups: use split_known()");
  }
  std::unique_ptr<Communicator> split_known(int group_size, int group_rank, int64_t color,
                                            int64_t) override {
    if (color < 0) return nullptr;
    return std::make_unique<CountingCommunicator>(group_size, group_rank);
  }

  void barrier() override {}
  void broadcast(void*, int64_t bytes, int root) override {
    LN_CHECK(root >= 0 && root < size_ && bytes >= 0, "broadcast of {} bytes from rank {} of {}",
             bytes, root, size_);
  }
  void all_reduce_sum(std::span<double>) override {}
  void all_reduce_sum(std::span<int64_t>) override {}
  void all_reduce_max(std::span<double>) override {}
  std::vector<std::string> all_gather_strings(const std::string& mine) override {
    return std::vector<std::string>(size_, mine);
  }

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

 private:
  int size_;
  int rank_;
};

}  // namespace

std::unique_ptr<Communicator> make_counting_communicator(int size, int rank) {
  return std::make_unique<CountingCommunicator>(size, rank);
}

}  // namespace longnet
