// The NCCL transport. See communicator_nccl.h; what is decided on the host is in transfer_plan.h.
//
//   all-gather      equal chunks: ncclAllGather in place; ragged: a group of sends and receives, or
//                   of one ncclBroadcast per chunk where a few chunks are most of it;
//   reduce-scatter  equal chunks: ncclReduceScatter in place; ragged: the parts are sent to the
//                   owner's staging, which rank_order_sum_cuda.cu adds in rank order, or a group of
//                   one ncclReduce per chunk;
//   all-reduce      ncclAllReduce in place.
// All communicators of a process work on one stream, in the order in which the host starts
// operations. That order is the same on all ranks, so no two communicators can wait for each other.
// Communicators are non-blocking: a call that is still setting up connections is polled, so that a
// peer that never comes ends in a message and not in silence. Empty chunks send nothing.
#include "dist/communicator_nccl.h"

#include <nccl.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <thread>
#include <utility>

#include "core/clock.h"
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

class NcclCommunicator;

/// An operation from its start until the compute stream waits for it and it has ended.
struct Operation {
  Request id;
  const char* name;
  NcclCommunicator* owner;
  device_runtime::OwnedEvent done;
  bool waited;
};

/// What all NCCL communicators of the process share: the stream, and the first error, which is
/// everybody's, because work of the others would wait behind it. One thread, as everywhere in dist.
struct Shared {
  std::vector<NcclCommunicator*> live;
  device_runtime::OwnedStream stream;  // while there is a communicator
  std::vector<Operation> running;      // in order of their start, which is that of their end
  std::vector<device_runtime::OwnedEvent> free_events;
  internal::Watchdog watchdog{0};
  std::exception_ptr error;
  Request last_id = 0;
};
/// Never destroyed: at the end of the program there may be no runtime to give anything back to.
Shared& shared() {
  static Shared* instance = new Shared;
  return *instance;
}

/// A group of NCCL calls, closed also when one of them throws.
class NcclGroup {
 public:
  NcclGroup() { LN_NCCL(ncclGroupStart()); }
  ~NcclGroup() {
    if (open_) ncclGroupEnd();
  }
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;
  void end() {
    open_ = false;
    LN_NCCL(ncclGroupEnd());
  }

 private:
  bool open_ = true;
};

class NcclCommunicator final : public Communicator {
 public:
  /// connect: starts the connection and gives the communicator, perhaps before it is usable.
  NcclCommunicator(std::unique_ptr<Communicator> host, const NcclOptions& options,
                   const std::function<ncclComm_t(ncclConfig_t*)>& connect)
      : host_(std::move(host)), options_(options) {
    rethrow();
    enter();
    try {
      ncclConfig_t config = non_blocking();
      comm_ = connect(&config);
      settle(comm_, "connecting");
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
    if (std::uncaught_exceptions() > 0)
      fail(std::make_exception_ptr(
          Error("{}: an earlier error has ended the collectives", internal::rank_and_host())));
    if (shared().error) {
      leave();
      return;
    }
    try {
      while (!device_runtime::finished(stream())) poll_or_throw();
      poll_all();  // what has ended is forgotten
      if (comm_ != nullptr) {
        LN_NCCL(ncclCommFinalize(comm_));
        settle(comm_, "closing");
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
  Device device() const override { return options_.device; }
  bool on_stream() const override { return true; }
  int local_rank() const override { return host_->local_rank(); }
  int local_size() const override { return host_->local_size(); }

  std::unique_ptr<Communicator> split(int64_t color, int64_t key) override {
    poll_all();
    rethrow();
    std::unique_ptr<Communicator> group = host_->split(color, key);  // checks color and key
    const auto connect = [&](ncclConfig_t* config) {
      ncclComm_t child = nullptr;
      LN_NCCL(ncclCommSplit(comm_, color < 0 ? NCCL_SPLIT_NOCOLOR : static_cast<int>(color),
                            static_cast<int>(key), &child, config));
      settle(comm_, "splitting");  // until then the child may not be there
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
  void all_gather_host(void* buffer, std::span<const int64_t> begin_bytes) override {
    count_all_gather(begin_bytes);
    healthy_host().all_gather_host(buffer, begin_bytes);
  }

  Request start_all_reduce_sum(float* values, int64_t n) override {
    count_all_reduce(n);
    if (size() == 1 || n == 0) return 0;
    return start("all-reduce", [&] {
      LN_NCCL(ncclAllReduce(values, values, static_cast<size_t>(n), ncclFloat32, ncclSum, comm_,
                            stream()));
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
                              stream()));
      });
    if (internal::direct_is_shorter(begin))
      return start("ragged all-gather", [&] {
        send_and_receive(internal::gather_plan(begin, rank()), bytes, bytes, ncclUint8, 1);
      });
    return start("broadcast of chunks", [&] {
      for_each_chunk(begin, [&](int member, size_t count) {
        char* chunk = bytes + begin[member];
        LN_NCCL(ncclBroadcast(chunk, chunk, count, ncclUint8, member, comm_, stream()));
      });
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
                                  ncclSum, comm_, stream()));
      });
    if (internal::direct_is_shorter(begin))
      return start("ragged reduce-scatter", [&] {
        send_and_receive(internal::scatter_plan(begin, rank()), reinterpret_cast<char*>(buffer),
                         reinterpret_cast<char*>(staging), ncclFloat32, sizeof(float));
        settle(comm_, "ragged reduce-scatter");  // the sum must come behind the receives
        internal::add_in_rank_order(stream(), values, staging, rank(), size(), own);
      });
    return start("sum of chunks", [&] {
      for_each_chunk(begin, [&](int member, size_t count) {
        float* chunk = buffer + begin[member];
        LN_NCCL(ncclReduce(chunk, chunk, count, ncclFloat32, ncclSum, member, comm_, stream()));
      });
    });
  }

  bool test(Request request) override {
    poll_all();
    rethrow();
    if (request == 0) return true;
    Operation& operation = find(request);
    if (!device_runtime::finished(operation.done.get())) return false;
    operation.waited = true;
    poll_all();
    return true;
  }

  void wait(Request request) override {
    poll_all();
    rethrow();
    if (request == 0) return;
    Operation& operation = find(request);
    device_runtime::wait_for(options_.compute, operation.done.get());
    operation.waited = true;  // watched until the GPU is through with it
  }

  void progress() override {
    host_->progress();
    poll_all();
  }

 private:
  static ncclConfig_t non_blocking() {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    return config;
  }
  static device_runtime::Stream stream() { return shared().stream.get(); }

  Communicator& healthy_host() {
    poll_all();
    rethrow();
    return *host_;
  }

  /// Orders `body`, which puts work on the stream, behind the compute stream's work so far.
  template <typename Body>
  Request start(const char* name, const Body& body) {
    poll_all();
    rethrow();
    Shared& s = shared();
    device_runtime::OwnedEvent event = take_event();
    device_runtime::record(event.get(), options_.compute);
    device_runtime::wait_for(stream(), event.get());
    const Request id = ++s.last_id;
    try {
      body();
    } catch (...) {  // an error that NCCL returned: the other ranks' halves would wait for ever
      fail(std::current_exception());
      throw;
    }
    settle(comm_, name);  // before this NCCL may not have reached the stream: an early event
    device_runtime::record(event.get(), stream());
    s.watchdog.started(id, name, seconds_now());
    s.running.push_back({id, name, this, std::move(event), false});
    return id;
  }

  void send_and_receive(const internal::TransferPlan& plan, const char* from, char* to,
                        ncclDataType_t type, int64_t width) {
    NcclGroup group;
    for (const internal::Transfer& t : plan.sends)
      LN_NCCL(ncclSend(from + t.begin * width, static_cast<size_t>(t.count), type, t.peer, comm_,
                       stream()));
    for (const internal::Transfer& t : plan.receives)
      LN_NCCL(ncclRecv(to + t.begin * width, static_cast<size_t>(t.count), type, t.peer, comm_,
                       stream()));
    group.end();
  }

  /// call(member, elements) for every chunk that is not empty, in one group.
  template <typename Call>
  void for_each_chunk(std::span<const int64_t> begin, const Call& call) {
    NcclGroup group;
    for (int member = 0; member < size(); ++member)
      if (begin[member] < begin[member + 1])
        call(member, static_cast<size_t>(begin[member + 1] - begin[member]));
    group.end();
  }

  /// Polls until `comm` has taken the last call, within the time limit.
  void settle(ncclComm_t comm, const char* name) {
    const double begin = seconds_now();
    for (;;) {
      ncclResult_t state = ncclSuccess;
      try {
        LN_NCCL(ncclCommGetAsyncError(comm, &state));
        internal::check_nccl(state, name, __FILE__, __LINE__);
      } catch (...) {
        fail(std::current_exception());
        throw;
      }
      if (state == ncclSuccess) return;
      poll_all();
      rethrow();
      const double seconds = seconds_now() - begin;
      if (options_.timeout_seconds > 0 && seconds > options_.timeout_seconds) {
        fail(overdue({name, seconds}, size()));
        rethrow();
      }
      std::this_thread::yield();
    }
  }

  /// Forgets operations that have ended and are waited for, and looks for errors and overdue
  /// operations; keeps what it finds.
  static void poll_all() noexcept {
    Shared& s = shared();
    if (s.live.empty() || s.error) return;
    try {
      while (!s.running.empty() && s.running.front().waited &&
             device_runtime::finished(s.running.front().done.get()))
        retire_first();
      for (const NcclCommunicator* communicator : s.live) communicator->check();
      if (s.running.empty()) return;
      const auto waiting = std::find_if(s.running.begin(), s.running.end(), unfinished);
      if (waiting == s.running.end()) return s.watchdog.clear();
      internal::say_if_told_to_end(waiting->id, waiting->name, waiting->owner->size());
      if (const auto late = s.watchdog.overdue(seconds_now())) {
        // Those before the first unfinished one have ended, only nobody has waited for them yet.
        if (late->id < waiting->id) return s.watchdog.finished(late->id);
        fail(overdue(*late, waiting->owner->size()));
      }
    } catch (...) {
      fail(std::current_exception());
    }
  }
  /// Throws an error that NCCL itself has detected, with the operation it must have hit.
  void check() const {
    if (comm_ == nullptr) return;
    ncclResult_t state = ncclSuccess;
    LN_NCCL(ncclCommGetAsyncError(comm_, &state));
    if (state == ncclSuccess || state == ncclInProgress) return;
    const auto& running = shared().running;
    const auto mine = std::find_if(running.begin(), running.end(), [&](const Operation& o) {
      return o.owner == this && unfinished(o);
    });
    const std::string what =
        fmt::format("{} in a group of {} ranks",
                    mine == running.end() ? "nothing being under way" : mine->name, size());
    internal::check_nccl(state, what.c_str(), __FILE__, __LINE__);
  }
  static bool unfinished(const Operation& o) { return !device_runtime::finished(o.done.get()); }

  static void poll_or_throw() {
    poll_all();
    rethrow();
    std::this_thread::yield();
  }
  static void rethrow() {
    if (shared().error) std::rethrow_exception(shared().error);
  }
  /// For waits on the host, which would not hear of an error otherwise.
  static void poll_for_host() {
    poll_all();
    rethrow();
  }

  static std::exception_ptr overdue(const internal::Watchdog::Overdue& late, int size) {
    return std::make_exception_ptr(
        Error("{}", internal::overdue_message(late, internal::rank_and_host(), size)));
  }
  /// Keeps the first error and takes everything off the GPU, so that no wait lasts for ever. In one
  /// group: a communicator's end may wait for the GPU, where another one's work hangs, too.
  static void fail(std::exception_ptr error) noexcept {
    if (shared().error) return;
    shared().error = std::move(error);
    ncclGroupStart();
    for (NcclCommunicator* communicator : shared().live) communicator->abort();
    ncclGroupEnd();
  }
  void abort() noexcept {
    if (comm_ != nullptr) ncclCommAbort(std::exchange(comm_, nullptr));
  }

  void enter() {
    Shared& s = shared();
    if (s.live.empty()) {
      s.stream.reset(device_runtime::make_stream(/*urgent=*/true));
      s.watchdog = internal::Watchdog(options_.timeout_seconds);
      internal::set_wait_hook(poll_for_host);
    }
    s.live.push_back(this);
  }
  void leave() noexcept {
    abort();
    Shared& s = shared();
    std::erase(s.live, this);
    for (const Operation& o : s.running)
      if (o.owner == this) s.watchdog.finished(o.id);
    std::erase_if(s.running, [&](const Operation& o) { return o.owner == this; });
    if (!s.live.empty()) return;
    internal::set_wait_hook(nullptr);
    s.free_events.clear();
    s.stream.reset();
  }

  static device_runtime::OwnedEvent take_event() {
    auto& free_events = shared().free_events;
    if (free_events.empty()) return device_runtime::OwnedEvent(device_runtime::make_event());
    device_runtime::OwnedEvent event = std::move(free_events.back());
    free_events.pop_back();
    return event;
  }

  static Operation& find(Request request) {
    for (Operation& o : shared().running)
      if (o.id == request && !o.waited) return o;
    throw Error("request {} is unknown or already waited for", request);
  }

  static void retire_first() {
    Shared& s = shared();
    s.watchdog.finished(s.running.front().id);
    s.free_events.push_back(std::move(s.running.front().done));
    s.running.erase(s.running.begin());
  }

  std::unique_ptr<Communicator> host_;
  NcclOptions options_;
  ncclComm_t comm_ = nullptr;  // null: aborted
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
