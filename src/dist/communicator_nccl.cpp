// The NCCL transport. See communicator_nccl.h; what is decided on the host is in transfer_plan.h.
//
//   all-gather      equal chunks: ncclAllGather in place; ragged: a group of sends and receives;
//   reduce-scatter  equal chunks: ncclReduceScatter in place; ragged: the parts are sent to the
//                   owner's staging, which rank_order_sum_cuda.cu adds in rank order;
//   all-reduce      ncclAllReduce in place.
// Communicators are non-blocking: a call that is still setting up connections is polled, so that a
// peer that never comes ends in a message and not in silence. Ragged chunks send nothing where they
// are empty. It has been compiled and linked, not run, where there was no GPU.
#include "dist/communicator_nccl.h"

#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <functional>
#include <thread>
#include <utility>

#include "dist/mpi_check.h"
#include "dist/nccl_check.h"
#include "dist/transfer_plan.h"

namespace longnet {
namespace internal {

void check_nccl(ncclResult_t code, const char* call, const char* file, int line) {
  if (code == ncclSuccess || code == ncclInProgress) return;
  const char* tail = std::strstr(file, "src/");
  const char* last = ncclGetLastError(nullptr);
  throw Error("{}: {} failed: {} ({}; {}:{})", rank_and_host(), call, ncclGetErrorString(code),
              last != nullptr && *last != '\0' ? last : "no further text", tail ? tail : file,
              line);
}

}  // namespace internal

namespace {

using Request = Communicator::Request;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class NcclCommunicator;

/// What all NCCL communicators of the process share: an error of one is everybody's, because work
/// of the others would wait behind it. One thread, as everywhere in dist.
struct Shared {
  std::vector<NcclCommunicator*> live;
  std::exception_ptr error;
  Request last_id = 0;
};
Shared& shared() {
  static Shared instance;
  return instance;
}

class NcclCommunicator final : public Communicator {
 public:
  /// connect: starts the connection and gives the communicator, perhaps before it is usable.
  NcclCommunicator(std::unique_ptr<Communicator> host, const NcclOptions& options,
                   const std::function<ncclComm_t(ncclConfig_t*)>& connect)
      : host_(std::move(host)),
        options_(options),
        watchdog_(options.timeout_seconds),
        stream_(device_runtime::make_stream(/*urgent=*/true)) {
    shared().live.push_back(this);
    try {
      ncclConfig_t config = non_blocking();
      comm_ = connect(&config);
      settle("connecting");
      int place = -1;
      LN_NCCL(ncclCommUserRank(comm_, &place));
      LN_CHECK(place == rank(), "NCCL made this rank {} of {}, MPI {}", place, size(), rank());
    } catch (...) {
      leave();
      throw;
    }
  }

  ~NcclCommunicator() override {
    // While an exception unwinds, the other ranks will not follow: stop what is on the GPU.
    if (std::uncaught_exceptions() > 0 || shared().error) {
      leave();
      return;
    }
    try {
      while (!device_runtime::finished(stream_.get())) poll_or_throw();
      if (comm_ != nullptr) {
        LN_NCCL(ncclCommFinalize(comm_));
        settle("closing");
        ncclCommDestroy(std::exchange(comm_, nullptr));
      }
    } catch (...) {  // a destructor cannot throw it; the error stands in the next call as well
    }
    leave();
  }
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  std::string transport() const override { return "nccl"; }
  int local_rank() const override { return host_->local_rank(); }
  int local_size() const override { return host_->local_size(); }

  std::unique_ptr<Communicator> split(int64_t color, int64_t key) override {
    rethrow();
    std::unique_ptr<Communicator> group = host_->split(color, key);  // checks color and key
    const auto connect = [&](ncclConfig_t* config) {
      ncclComm_t child = nullptr;
      LN_NCCL(ncclCommSplit(comm_, color < 0 ? NCCL_SPLIT_NOCOLOR : static_cast<int>(color),
                            static_cast<int>(key), &child, config));
      settle("splitting");  // until then the child may not be there
      return child;
    };
    if (group) return std::make_unique<NcclCommunicator>(std::move(group), options_, connect);
    ncclConfig_t config = non_blocking();
    connect(&config);  // all ranks take part, this one gets nothing
    return nullptr;
  }

  // On the host. Not after an error: the other ranks may never come.
  void barrier() override { healthy_host().barrier(); }
  void broadcast(void* data, int64_t bytes, int root) override {
    healthy_host().broadcast(data, bytes, root);
  }
  void all_reduce_sum(std::span<double> values) override { healthy_host().all_reduce_sum(values); }
  void all_reduce_sum(std::span<int64_t> values) override { healthy_host().all_reduce_sum(values); }
  void all_reduce_max(std::span<double> values) override { healthy_host().all_reduce_max(values); }
  std::vector<std::string> all_gather_strings(const std::string& mine) override {
    return healthy_host().all_gather_strings(mine);
  }

  Request start_all_reduce_sum(float* values, int64_t n) override {
    count_all_reduce(n);
    if (size() == 1 || n == 0) return 0;
    return start("all-reduce", [&] {
      LN_NCCL(ncclAllReduce(values, values, static_cast<size_t>(n), ncclFloat32, ncclSum, comm_,
                            stream_.get()));
    });
  }

  Request start_all_gather(void* buffer, std::span<const int64_t> begin) override {
    count_all_gather(begin);
    if (size() == 1 || begin.back() == begin.front()) return 0;
    char* bytes = static_cast<char*>(buffer);
    if (internal::chunks_are_equal(begin))
      return start("all-gather", [&] {
        LN_NCCL(ncclAllGather(bytes + begin[rank()], bytes + begin[0],
                              static_cast<size_t>(begin[1] - begin[0]), ncclUint8, comm_,
                              stream_.get()));
      });
    return start("ragged all-gather", [&] {
      send_and_receive(internal::gather_plan(begin, rank()), bytes, bytes, ncclUint8, 1);
    });
  }

  Request start_reduce_scatter(float* buffer, std::span<const int64_t> begin,
                               float* staging) override {
    count_reduce_scatter(begin);
    if (size() == 1 || begin.back() == begin.front()) return 0;
    const int64_t own = begin[rank() + 1] - begin[rank()];
    float* values = buffer + begin[rank()];  // [own]
    if (internal::chunks_are_equal(begin))
      return start("reduce-scatter", [&] {
        LN_NCCL(ncclReduceScatter(buffer + begin[0], values, static_cast<size_t>(own), ncclFloat32,
                                  ncclSum, comm_, stream_.get()));
      });
    return start("ragged reduce-scatter", [&] {
      send_and_receive(internal::scatter_plan(begin, rank()), reinterpret_cast<char*>(buffer),
                       reinterpret_cast<char*>(staging), ncclFloat32, sizeof(float));
      settle("ragged reduce-scatter");  // the sum must come behind the receives on the stream
      internal::add_in_rank_order(stream_.get(), values, staging, rank(), size(), own);
    });
  }

  bool test(Request request) override {
    poll_all();
    rethrow();
    if (request == 0) return true;
    const auto found = find(request);
    if (!device_runtime::finished(found->done.get())) return false;
    retire(found);
    return true;
  }

  void wait(Request request) override {
    poll_all();
    rethrow();
    if (request == 0) return;
    const auto found = find(request);
    device_runtime::wait_for(options_.compute, found->done.get());
    found->waited = true;  // watched until the GPU is through with it
  }

  void progress() override {
    host_->progress();
    poll_all();
  }

 private:
  struct Operation {
    Request id;
    device_runtime::OwnedEvent done;
    bool waited;
  };
  using Place = std::vector<Operation>::iterator;

  static ncclConfig_t non_blocking() {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    return config;
  }

  Communicator& healthy_host() {
    poll_all();
    rethrow();
    return *host_;
  }

  /// Orders `body`, which puts work on stream_, behind the compute stream's work so far.
  template <typename Body>
  Request start(const char* name, const Body& body) {
    poll_all();
    rethrow();
    device_runtime::OwnedEvent event = take_event();
    device_runtime::record(event.get(), options_.compute);
    device_runtime::wait_for(stream_.get(), event.get());
    const Request id = ++shared().last_id;
    watchdog_.started(id, name, now());
    body();
    settle(name);  // before this NCCL may not have reached the stream, and the event would be early
    device_runtime::record(event.get(), stream_.get());
    running_.push_back({id, std::move(event), false});
    return id;
  }

  void send_and_receive(const internal::TransferPlan& plan, const char* from, char* to,
                        ncclDataType_t type, int64_t width) {
    LN_NCCL(ncclGroupStart());
    for (const internal::Transfer& t : plan.sends)
      LN_NCCL(ncclSend(from + t.begin * width, static_cast<size_t>(t.count), type, t.peer, comm_,
                       stream_.get()));
    for (const internal::Transfer& t : plan.receives)
      LN_NCCL(ncclRecv(to + t.begin * width, static_cast<size_t>(t.count), type, t.peer, comm_,
                       stream_.get()));
    LN_NCCL(ncclGroupEnd());
  }

  /// Polls until the communicator has taken the last call, within the time limit.
  void settle(const char* name) {
    const double begin = now();
    for (;;) {
      rethrow();
      ncclResult_t state = ncclSuccess;
      try {
        LN_NCCL(ncclCommGetAsyncError(comm_, &state));
        internal::check_nccl(state, name, __FILE__, __LINE__);
      } catch (...) {
        fail(std::current_exception());
        throw;
      }
      if (state == ncclSuccess) return;
      const double seconds = now() - begin;
      if (options_.timeout_seconds > 0 && seconds > options_.timeout_seconds) fail({name, seconds});
      std::this_thread::yield();
    }
  }

  /// Looks for errors and overdue operations of this communicator; keeps what it finds.
  void poll() noexcept {
    if (comm_ == nullptr || shared().error) return;
    try {
      for (auto o = running_.begin(); o != running_.end();) {
        if (!device_runtime::finished(o->done.get())) {
          ++o;
          continue;
        }
        watchdog_.finished(o->id);
        if (o->waited) {
          free_events_.push_back(std::move(o->done));
          o = running_.erase(o);
        } else {
          ++o;
        }
      }
      ncclResult_t state = ncclSuccess;
      LN_NCCL(ncclCommGetAsyncError(comm_, &state));
      internal::check_nccl(state, "a collective", __FILE__, __LINE__);
      if (const auto overdue = watchdog_.overdue(now())) fail(*overdue);
    } catch (...) {
      fail(std::current_exception());
    }
  }

  static void poll_all() noexcept {
    const std::vector<NcclCommunicator*> all = shared().live;
    for (NcclCommunicator* communicator : all) communicator->poll();
  }
  static void poll_or_throw() {
    poll_all();
    rethrow();
    std::this_thread::yield();
  }
  static void rethrow() {
    if (shared().error) std::rethrow_exception(shared().error);
  }

  void fail(const internal::Watchdog::Overdue& overdue) {
    fail(std::make_exception_ptr(
        Error(internal::overdue_message(overdue, internal::rank_and_host(), size()))));
  }
  /// Keeps the first error and takes everything off the GPU, so that no wait lasts for ever.
  static void fail(std::exception_ptr error) noexcept {
    if (shared().error) return;
    shared().error = std::move(error);
    for (NcclCommunicator* communicator : shared().live) communicator->abort();
  }
  void abort() noexcept {
    if (comm_ != nullptr) ncclCommAbort(std::exchange(comm_, nullptr));
  }

  void leave() noexcept {
    abort();
    std::erase(shared().live, this);
  }

  device_runtime::OwnedEvent take_event() {
    if (free_events_.empty()) return device_runtime::OwnedEvent(device_runtime::make_event());
    device_runtime::OwnedEvent event = std::move(free_events_.back());
    free_events_.pop_back();
    return event;
  }

  Place find(Request request) {
    const auto found = std::find_if(running_.begin(), running_.end(), [&](const Operation& o) {
      return o.id == request && !o.waited;
    });
    if (found == running_.end())
      throw Error("request {} is unknown or already waited for", request);
    return found;
  }

  void retire(Place place) {
    watchdog_.finished(place->id);
    free_events_.push_back(std::move(place->done));
    running_.erase(place);
  }

  std::unique_ptr<Communicator> host_;
  NcclOptions options_;
  internal::Watchdog watchdog_;
  device_runtime::OwnedStream stream_;
  ncclComm_t comm_ = nullptr;       // null: aborted
  std::vector<Operation> running_;  // in order of their start
  std::vector<device_runtime::OwnedEvent> free_events_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host,
                                                     const NcclOptions& options) {
  LN_CHECK(host != nullptr, "no host communicator");
  ncclUniqueId id;
  if (host->rank() == 0) LN_NCCL(ncclGetUniqueId(&id));
  host->broadcast(&id, sizeof id, 0);
  const int rank = host->rank(), size = host->size();
  return std::make_unique<NcclCommunicator>(std::move(host), options, [&](ncclConfig_t* config) {
    ncclComm_t comm = nullptr;
    LN_NCCL(ncclCommInitRankConfig(&comm, size, id, rank, config));
    return comm;
  });
}

}  // namespace longnet
