// The MPI transport (CPU) and MPI's lifetime.
//
// A non-blocking collective is a group of Isend and Irecv, direct from every rank to every other:
//   all-gather      each rank sends its chunk to the others; empty chunks send nothing;
//   reduce-scatter  each rank sends chunk m to rank m, which adds the staged chunks in rank order
//                   in float32, so the sum has the same bits in every run;
//   all-reduce      a reduce-scatter of `size` blocks, then an all-gather: equal bits on all ranks.
// MPI moves data only inside its calls, and the second phase of an all-reduce must be posted later.
// So all communicators share one engine, and any wait advances everything: a rank that waits in one
// group never delays another. It does not support GPU memory and is not thread-safe.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <thread>

#include "core/system.h"
#include "dist/communicator.h"
#include "dist/mpi_check.h"
#include "dist/transfer_plan.h"

namespace longnet {
namespace internal {
namespace {

std::string error_text(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) return fmt::format("code {}", code);
  std::replace(text, text + length, '\n', ' ');  // MPICH adds its error stack, a line each
  return std::string(text, length);
}

}  // namespace

void check_mpi(int code, const char* call, const char* file, int line) {
  if (code == MPI_SUCCESS) return;
  const std::string path(file);
  const size_t tail = path.rfind("src/");
  throw Error("{}: {} failed: {} ({}:{})", rank_and_host(), call, error_text(code),
              tail == std::string::npos ? path : path.substr(tail), line);
}

}  // namespace internal

namespace {

using Request = Communicator::Request;

/// values[i] = sum over ranks of source(rank)[i], added in rank order. parts[rank] may be `values`.
void add_in_rank_order(float* values, std::span<const float* const> parts, int64_t n) {
  constexpr int64_t kTile = 2048;  // 8 KiB of sums stay in the first-level cache
  float sum[kTile];
  for (int64_t begin = 0; begin < n; begin += kTile) {
    const int64_t count = std::min(kTile, n - begin);
    std::copy_n(parts[0] + begin, count, sum);
    for (size_t p = 1; p < parts.size(); ++p) {
      const float* part = parts[p] + begin;
      for (int64_t i = 0; i < count; ++i) sum[i] += part[i];
    }
    std::copy_n(sum, count, values + begin);
  }
}

/// A group that an operation runs on.
struct Group {
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0;
  int size = 1;
  int64_t started = 0;  // operations so far, the same on all members
  int64_t message_bytes = kLargestMpiMessage;
};

/// One non-blocking collective between its start and its wait.
struct Operation {
  enum class Kind { kAllGather, kReduceScatter, kAllReduce, kBroadcast };
  Kind kind = Kind::kAllGather;
  const char* name = "";
  Request id = 0;
  MPI_Comm comm = MPI_COMM_NULL;
  int rank = 0, size = 1;
  int64_t message_bytes = kLargestMpiMessage;
  int tag = 0;  // of the current phase
  bool done = false;
  bool gathering = false;               // all-reduce, broadcast: the second phase
  int root = 0;                         // broadcast
  char* buffer = nullptr;               // caller's
  std::vector<int64_t> begin;           // [size + 1] bytes
  float* staging = nullptr;             // [size - 1][own chunk]
  std::vector<float> own_staging;       // all-reduce only; kept for the next one
  std::vector<MPI_Request> messages;    // in flight
  std::vector<int64_t> received_bytes;  // per message: what must arrive; -1 for a send
  std::vector<int> peers;               // per message: the other member
  std::vector<MPI_Status> statuses;     // scratch
  std::vector<const float*> parts;      // scratch

  char* chunk(int member) const { return buffer + begin[member]; }
  int64_t chunk_bytes(int member) const { return begin[member + 1] - begin[member]; }
};

/// The members of a group as ranks of the job. Asks nobody.
std::vector<int> ranks_of_job(MPI_Comm comm, std::vector<int> members) {
  std::vector<int> ranks(members.size());
  MPI_Group group, world;
  LN_MPI(MPI_Comm_group(comm, &group));
  LN_MPI(MPI_Comm_group(MPI_COMM_WORLD, &world));
  LN_MPI(MPI_Group_translate_ranks(group, static_cast<int>(members.size()), members.data(), world,
                                   ranks.data()));
  LN_MPI(MPI_Group_free(&group));
  LN_MPI(MPI_Group_free(&world));
  return ranks;
}

/// All operations of this process, moved on together.
class Engine {
 public:
  /// Takes a free operation; the caller fills it and calls start().
  Operation& prepare(Group& group, Operation::Kind kind, const char* name) {
    rethrow();
    std::unique_ptr<Operation> operation;
    if (free_.empty()) {
      operation = std::make_unique<Operation>();
    } else {
      operation = std::move(free_.back());
      free_.pop_back();
    }
    Operation& o = *operation;
    o.kind = kind;
    o.name = name;
    o.id = ++last_id_;
    o.comm = group.comm;
    o.rank = group.rank;
    o.size = group.size;
    o.message_bytes = group.message_bytes;
    // Two tags per operation: phases of different operations overlap in different orders. They wrap
    // below the smallest tag limit that MPI allows (32767).
    o.tag = static_cast<int>(group.started++ % 16000) * 2;
    o.done = o.gathering = false;
    active_.push_back(std::move(operation));
    return o;
  }

  Request start(Operation& o) {
    switch (o.kind) {
      case Operation::Kind::kAllGather:
        post_gather(o);
        break;
      case Operation::Kind::kBroadcast:
        post_from_root(o);
        break;
      default:
        post_scatter(o);
    }
    if (o.messages.empty()) advance(o);
    return o.id;
  }

  bool test(Request id) {
    rethrow();
    if (id == 0) return true;
    if (!find(id)->done) advance_all();
    return release_if_done(id);
  }

  void wait(Request id) {
    rethrow();
    if (id == 0) return;
    const Operation* operation = find(id);
    internal::HostWait host_wait(operation->name, operation->size,
                                 [operation] { return missing(*operation); });
    while (!release_if_done(id)) {
      advance_all();
      if (!operation->done) host_wait.again();
    }
  }

  void progress() noexcept {
    if (error_) return;
    try {
      advance_all();
    } catch (...) {
      error_ = std::current_exception();
    }
  }

  bool uses(MPI_Comm comm) const {
    return std::any_of(active_.begin(), active_.end(),
                       [&](const auto& o) { return o->comm == comm && !o->done; });
  }
  void drain(MPI_Comm comm, int size) {
    internal::HostWait host_wait("closing a communicator", size);
    while (uses(comm)) {
      advance_all();
      host_wait.again();
    }
  }

 private:
  void rethrow() {
    if (error_) std::rethrow_exception(error_);
  }

  Operation* find(Request id) {
    for (auto& o : active_)
      if (o->id == id) return o.get();
    throw Error("request {} is unknown or already waited for", id);
  }

  bool release_if_done(Request id) {
    for (size_t i = 0; i < active_.size(); ++i)
      if (active_[i]->id == id) {
        if (!active_[i]->done) return false;
        free_.push_back(std::move(active_[i]));
        active_.erase(active_.begin() + static_cast<int64_t>(i));
        return true;
      }
    throw Error("request {} is unknown or already waited for", id);
  }

  /// One transfer in as many messages as MPI's counts need; MPI keeps their order.
  void post(Operation& o, bool send, void* data, int64_t bytes, int peer) {
    for (int64_t at = 0; at < bytes; at += o.message_bytes) {
      const int count = static_cast<int>(std::min(o.message_bytes, bytes - at));
      char* address = static_cast<char*>(data) + at;
      MPI_Request message = MPI_REQUEST_NULL;
      if (send) {
        LN_MPI(MPI_Isend(address, count, MPI_BYTE, peer, o.tag, o.comm, &message));
      } else {
        LN_MPI(MPI_Irecv(address, count, MPI_BYTE, peer, o.tag, o.comm, &message));
      }
      o.messages.push_back(message);
      o.received_bytes.push_back(send ? -1 : count);
      o.peers.push_back(peer);
    }
  }

  // Receives first, so that data has a place to go; peers in a rotated order, so that not all ranks
  // send to rank 0 at once. The root of a broadcast needs nothing from the others.
  void post_gather(Operation& o) {
    const bool broadcast = o.kind == Operation::Kind::kBroadcast;
    for (int i = 1; i < o.size; ++i) {
      const int from = (o.rank - i + o.size) % o.size;
      if (!(broadcast && o.rank == o.root))
        post(o, false, o.chunk(from), o.chunk_bytes(from), from);
    }
    for (int i = 1; i < o.size; ++i) {
      const int to = (o.rank + i) % o.size;
      if (!(broadcast && to == o.root)) post(o, true, o.chunk(o.rank), o.chunk_bytes(o.rank), to);
    }
  }

  /// Every other member's chunk from the root.
  void post_from_root(Operation& o) {
    if (o.rank != o.root) return post(o, false, o.chunk(o.rank), o.chunk_bytes(o.rank), o.root);
    for (int i = 1; i < o.size; ++i) {
      const int to = (o.rank + i) % o.size;
      post(o, true, o.chunk(to), o.chunk_bytes(to), to);
    }
  }

  void post_scatter(Operation& o) {
    const int64_t own = o.chunk_bytes(o.rank);
    for (int i = 1; i < o.size; ++i) {
      const int from = (o.rank - i + o.size) % o.size;
      post(o, false, staged(o, from), own, from);
    }
    for (int i = 1; i < o.size; ++i) {
      const int to = (o.rank + i) % o.size;
      post(o, true, o.chunk(to), o.chunk_bytes(to), to);
    }
  }

  /// Where the chunk of `member` is staged: [own chunk], members in order without this rank.
  static float* staged(Operation& o, int member) {
    const int64_t own = o.chunk_bytes(o.rank) / static_cast<int64_t>(sizeof(float));
    return o.staging + own * (member < o.rank ? member : member - 1);
  }

  static void add_staged(Operation& o) {
    const int64_t own = o.chunk_bytes(o.rank) / static_cast<int64_t>(sizeof(float));
    float* values = reinterpret_cast<float*>(o.chunk(o.rank));
    o.parts.clear();
    for (int member = 0; member < o.size; ++member)
      o.parts.push_back(member == o.rank ? values : staged(o, member));
    add_in_rank_order(values, o.parts, own);
  }

  /// Completes the current phase if all its messages have arrived, and starts the next.
  void advance(Operation& o) {
    while (!o.done) {
      if (!messages_arrived(o)) return;
      if (o.kind == Operation::Kind::kAllGather || o.gathering) {
        o.done = true;
        return;
      }
      if (o.kind != Operation::Kind::kBroadcast) add_staged(o);
      if (o.kind == Operation::Kind::kReduceScatter) {
        o.done = true;
        return;
      }
      o.gathering = true;
      ++o.tag;
      post_gather(o);
    }
  }

  bool messages_arrived(Operation& o) {
    if (o.messages.empty()) return true;
    int arrived = 0;
    o.statuses.resize(o.messages.size());
    const int code = MPI_Testall(static_cast<int>(o.messages.size()), o.messages.data(), &arrived,
                                 o.statuses.data());
    if (code == MPI_ERR_IN_STATUS)
      for (const MPI_Status& status : o.statuses)
        if (status.MPI_ERROR != MPI_ERR_PENDING)
          internal::check_mpi(status.MPI_ERROR, o.name, __FILE__, __LINE__);
    internal::check_mpi(code, o.name, __FILE__, __LINE__);
    if (!arrived) return false;
    for (size_t i = 0; i < o.statuses.size(); ++i) {
      if (o.received_bytes[i] < 0) continue;
      int count = 0;
      LN_MPI(MPI_Get_count(&o.statuses[i], MPI_BYTE, &count));
      if (count != o.received_bytes[i])
        throw Error(
            "{}: {} got {} bytes from member {} of its group, expected {}: the ranks disagree "
            "about the plan",
            internal::rank_and_host(), o.name, count, o.statuses[i].MPI_SOURCE,
            o.received_bytes[i]);
    }
    o.messages.clear();
    o.received_bytes.clear();
    o.peers.clear();
    return true;
  }

  /// Who has not sent, or where all have, not received yet. Asks nobody.
  static internal::Missing missing(const Operation& o) {
    std::vector<char> silent(o.size, 0);
    for (const bool of_sends : {false, true}) {
      for (size_t i = 0; i < o.messages.size(); ++i) {
        int arrived = 1;
        if ((o.received_bytes[i] < 0) == of_sends && o.messages[i] != MPI_REQUEST_NULL)
          LN_MPI(MPI_Request_get_status(o.messages[i], &arrived, MPI_STATUS_IGNORE));
        if (!arrived) silent[o.peers[i]] = 1;
      }
      if (std::count(silent.begin(), silent.end(), 1) > 0) break;
    }
    internal::Missing missing;
    for (int member = 0; member < o.size; ++member)
      if (silent[member])
        missing.ranks.push_back(member);
      else
        missing.speakers_before += member < o.rank;
    missing.ranks = ranks_of_job(o.comm, std::move(missing.ranks));
    std::sort(missing.ranks.begin(), missing.ranks.end());
    return missing;
  }

  void advance_all() {
    rethrow();
    for (auto& o : active_)
      if (!o->done) advance(*o);
  }

  std::vector<std::unique_ptr<Operation>> active_;  // in order of their start
  std::vector<std::unique_ptr<Operation>> free_;    // with their memory, for the next ones
  Request last_id_ = 0;
  std::exception_ptr error_;
};

/// One per process, like MPI itself. Never destroyed: what is still in flight when an error unwinds
/// the program keeps its memory until the end.
Engine& engine() {
  static Engine* instance = new Engine;
  return *instance;
}

Request start_gather(Group& group, void* buffer, std::span<const int64_t> begin_bytes,
                     const char* name) {
  Operation& o = engine().prepare(group, Operation::Kind::kAllGather, name);
  o.buffer = static_cast<char*>(buffer);
  o.begin.assign(begin_bytes.begin(), begin_bytes.end());
  return engine().start(o);
}

/// Waits for an operation on `buffer`, a vector or string. If the wait throws, the memory is leaked
/// on purpose: messages may still arrive.
template <typename Buffer>
void wait_for(Request request, Buffer& buffer) {
  try {
    engine().wait(request);
  } catch (...) {
    new Buffer(std::move(buffer));
    throw;
  }
}

/// [size + 1] limits of chunks of `bytes` each.
std::vector<int64_t> equal_chunks(int size, int64_t bytes) {
  std::vector<int64_t> begin(size + 1);
  for (int member = 0; member <= size; ++member) begin[member] = member * bytes;
  return begin;
}

/// Barrier of all members. Every rank hears from every other one directly and can name the missing
/// ones, which MPI's own barrier cannot. It also precedes blocking calls of MPI, which then find all
/// ranks ready.
void meet(Group& group, const char* name) {
  std::vector<char> here(group.size);
  wait_for(start_gather(group, here.data(), equal_chunks(group.size, 1), name), here);
}

/// All ranks of the job, for what is before and after the communicators.
Group& job() {
  static Group instance = [] {
    Group group;
    group.comm = MPI_COMM_WORLD;
    LN_MPI(MPI_Comm_rank(group.comm, &group.rank));
    LN_MPI(MPI_Comm_size(group.comm, &group.size));
    return group;
  }();
  return instance;
}

/// The hosts' names, for messages. Collective.
std::vector<std::string> gather_hosts() {
  constexpr int64_t kBytes = 64;  // a longer name is cut
  Group& all = job();
  int length = 0;
  char host[MPI_MAX_PROCESSOR_NAME] = {};
  if (MPI_Get_processor_name(host, &length) != MPI_SUCCESS) length = 0;
  std::vector<char> names(all.size * kBytes);
  std::copy_n(host, std::min<int64_t>(length, kBytes - 1), names.data() + all.rank * kBytes);
  wait_for(start_gather(all, names.data(), equal_chunks(all.size, kBytes), "start of the job"),
           names);
  std::vector<std::string> hosts;
  for (int rank = 0; rank < all.size; ++rank) hosts.emplace_back(names.data() + rank * kBytes);
  return hosts;
}

/// The node of every rank of the job, named by the lowest rank there. Collective.
std::vector<int> find_nodes(MPI_Comm comm) {
  const int rank = job().rank, size = job().size;
  const internal::BlockingCall watched("start of the job", rank, size);
  MPI_Comm node = MPI_COMM_NULL;
  LN_MPI(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node));
  int lowest = rank;
  LN_MPI(MPI_Bcast(&lowest, 1, MPI_INT, 0, node));
  LN_MPI(MPI_Comm_free(&node));
  std::vector<int> nodes(size);
  LN_MPI(MPI_Allgather(&lowest, 1, MPI_INT, nodes.data(), 1, MPI_INT, comm));
  return nodes;
}

class MpiCommunicator final : public Communicator {
 public:
  /// Takes over comm. world_nodes: find_nodes() of the job, which knows the nodes of every group.
  MpiCommunicator(MPI_Comm comm, std::shared_ptr<const std::vector<int>> world_nodes,
                  int64_t message_bytes)
      : world_nodes_(std::move(world_nodes)) {
    group_.comm = comm;
    group_.message_bytes = message_bytes;
    LN_MPI(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN));
    LN_MPI(MPI_Comm_rank(comm, &group_.rank));
    LN_MPI(MPI_Comm_size(comm, &group_.size));
  }
  ~MpiCommunicator() override {
    // While an exception unwinds, the other ranks will not follow: leave everything as it is.
    if (std::uncaught_exceptions() > 0) return;
    try {
      engine().drain(group_.comm, size());
      const internal::BlockingCall watched("closing a communicator", rank(), size());
      MPI_Comm_free(&group_.comm);
    } catch (...) {  // the error stands in the next operation as well; a destructor cannot throw it
    }
  }
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return group_.rank; }
  int size() const override { return group_.size; }
  std::string transport() const override { return "mpi"; }
  int local_rank() const override { return count_on_node(rank()); }
  int local_size() const override { return count_on_node(size()); }

  std::unique_ptr<Communicator> split(int64_t color, int64_t key) override {
    constexpr int64_t kMax = std::numeric_limits<int>::max();
    LN_CHECK(color <= kMax && key >= -kMax && key <= kMax, "split: color {}, key {}", color, key);
    MPI_Comm comm = MPI_COMM_NULL;
    meet(group_, "splitting a group");
    const internal::BlockingCall watched("splitting a group", rank(), size());
    LN_MPI(MPI_Comm_split(group_.comm, color < 0 ? MPI_UNDEFINED : static_cast<int>(color),
                          static_cast<int>(key), &comm));
    if (comm == MPI_COMM_NULL) return nullptr;
    return std::make_unique<MpiCommunicator>(comm, world_nodes_, group_.message_bytes);
  }

  void barrier() override { meet(group_, "barrier"); }

  void broadcast(void* data, int64_t bytes, int root) override {
    LN_CHECK(root >= 0 && root < size() && bytes >= 0, "broadcast of {} bytes from rank {} of {}",
             bytes, root, size());
    // The root sends each member a part, and all exchange theirs: no rank sends more than twice the
    // whole, and every rank knows whom it waits for. A short one is the root's part alone.
    constexpr int64_t kShort = 16384;
    Operation& o = engine().prepare(group_, Operation::Kind::kBroadcast, "broadcast");
    o.buffer = static_cast<char*>(data);
    o.root = root;
    o.begin.clear();
    for (int member = 0; member <= size(); ++member)
      o.begin.push_back(bytes <= kShort ? (member <= root ? 0 : bytes)
                                        : block_begin(bytes, size(), member));
    engine().wait(engine().start(o));
  }

  void all_reduce_sum(std::span<double> values) override {
    // Every rank adds all ranks' values in rank order: MPI does not promise one order.
    reduce(values, "sum of doubles", [](double a, double b) { return a + b; });
  }

  void all_reduce_sum(std::span<int64_t> values) override {
    reduce(values, "sum of integers", [](int64_t a, int64_t b) { return a + b; });
  }

  void all_reduce_max(std::span<double> values) override {
    reduce(values, "maximum", [](double a, double b) { return std::max(a, b); });
  }

  std::vector<std::string> all_gather_strings(const std::string& mine) override {
    std::vector<int64_t> lengths(size());
    lengths[rank()] = static_cast<int64_t>(mine.size());
    wait_for(gather(lengths.data(), equal_chunks(size(), sizeof(int64_t)), "gather of lengths"),
             lengths);
    std::vector<int64_t> begin{0};
    for (int64_t length : lengths) begin.push_back(begin.back() + length);
    std::string all(begin.back(), '\0');
    std::copy(mine.begin(), mine.end(), all.begin() + begin[rank()]);
    wait_for(gather(all.data(), begin, "gather of strings"), all);
    std::vector<std::string> strings;
    for (int member = 0; member < size(); ++member)
      strings.push_back(all.substr(begin[member], lengths[member]));
    return strings;
  }

  Request start_all_reduce_sum(float* values, int64_t n) override {
    count_all_reduce(n);
    Operation& o = engine().prepare(group_, Operation::Kind::kAllReduce, "all-reduce");
    o.buffer = reinterpret_cast<char*>(values);
    o.begin.clear();
    for (int member = 0; member <= size(); ++member)
      o.begin.push_back(block_begin(n, size(), member) * static_cast<int64_t>(sizeof(float)));
    const size_t staged = (size() - 1) * static_cast<size_t>(o.chunk_bytes(rank())) / sizeof(float);
    if (o.own_staging.size() < staged) o.own_staging.resize(staged);
    o.staging = o.own_staging.data();
    return engine().start(o);
  }

  Request start_all_gather(void* buffer, std::span<const int64_t> begin_bytes) override {
    count_all_gather(begin_bytes);
    return gather(buffer, begin_bytes, "all-gather");
  }

  Request start_reduce_scatter(float* buffer, std::span<const int64_t> begin,
                               float* staging) override {
    count_reduce_scatter(begin);
    Operation& o = engine().prepare(group_, Operation::Kind::kReduceScatter, "reduce-scatter");
    o.buffer = reinterpret_cast<char*>(buffer);
    o.begin.clear();
    for (int64_t b : begin) o.begin.push_back(b * static_cast<int64_t>(sizeof(float)));
    o.staging = staging;
    return engine().start(o);
  }

  bool test(Request request) override { return engine().test(request); }
  void wait(Request request) override { engine().wait(request); }
  void progress() override { engine().progress(); }

 private:
  Request gather(void* buffer, std::span<const int64_t> begin_bytes, const char* name) {
    return start_gather(group_, buffer, begin_bytes, name);
  }

  /// values[i] = all ranks' values[i], combined in rank order on every rank.
  template <typename T, typename Combine>
  void reduce(std::span<T> values, const char* name, const Combine& combine) {
    const int64_t n = static_cast<int64_t>(values.size());
    std::vector<T> all(n * size());
    std::copy(values.begin(), values.end(), all.begin() + n * rank());
    wait_for(gather(all.data(), equal_chunks(size(), n * static_cast<int64_t>(sizeof(T))), name),
             all);
    for (int64_t i = 0; i < n; ++i) {
      values[i] = all[i];
      for (int member = 1; member < size(); ++member)
        values[i] = combine(values[i], all[n * member + i]);
    }
  }

  /// How many of the group's ranks below `end` are on this rank's node. Asks nobody.
  int count_on_node(int end) const {
    std::vector<int> members(size());
    std::iota(members.begin(), members.end(), 0);
    const std::vector<int> world_ranks = ranks_of_job(group_.comm, members);
    const auto node = [&](int member) { return (*world_nodes_)[world_ranks[member]]; };
    return static_cast<int>(std::count_if(members.begin(), members.begin() + end, [&](int member) {
      return node(member) == node(rank());
    }));
  }

  std::shared_ptr<const std::vector<int>> world_nodes_;
  Group group_;
};

}  // namespace

namespace {

/// Under another MPI's mpirun every rank would be a separate job, and all would train into one
/// folder.
void check_launcher() {
  int size = 0;
  LN_MPI(MPI_Comm_size(MPI_COMM_WORLD, &size));
  if (size > 1) return;
  // Set by the launchers of Open MPI and of MPICH and its kin.
  for (const char* variable : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
    const char* started = std::getenv(variable);
    if (started == nullptr || std::atoi(started) <= 1) continue;
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    LN_MPI(MPI_Get_library_version(version, &length));
    const std::string text(version, length);
    throw Error(
        "{} ranks were started, but each is alone: mpirun belongs to another MPI than this program "
        "({}); start it with scripts/mpirun_local.sh or that MPI's mpirun",
        started, text.substr(0, text.find_first_of(",\n")));
  }
}

/// A number that the launcher (Open MPI's, or a PMI one) sets before MPI starts; `otherwise` if
/// unset.
int launched(std::initializer_list<const char*> names, int otherwise) {
  for (const char* name : names)
    if (const char* text = std::getenv(name)) return std::max(0, std::atoi(text));
  return otherwise;
}

}  // namespace

MpiSession::MpiSession(int* argc, char*** argv) {
  // Below these Open MPI fails half way through its start, or goes on without its transports.
  require_limits(/*open_files=*/64, /*address_space=*/int64_t{512} << 20,
                 /*file_size=*/int64_t{5} << 20);
  int granted = MPI_THREAD_SINGLE;
  {
    const internal::BlockingCall watched(
        "start of MPI",
        launched({"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}, 0),
        launched({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"}, 1));
    LN_MPI(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &granted));
  }
  LN_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
  internal::set_identity(job().rank, {});
  if (granted < MPI_THREAD_FUNNELED)
    throw Error("this MPI library offers no threads (MPI_THREAD_FUNNELED); use one that does");
  check_launcher();
}

MpiSession::~MpiSession() {
  // Finalising is collective: while an exception unwinds, the other ranks would wait for ever.
  if (std::uncaught_exceptions() > 0) return;
  const internal::BlockingCall watched("end of the job", job().rank, job().size);
  MPI_Finalize();
}

void MpiSession::wait_for_all() { meet(job(), "end of the job"); }

void MpiSession::abort(int exit_code) {
  int ranks = 1;
  if (initialised()) MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  if (ranks > 1) MPI_Abort(MPI_COMM_WORLD, exit_code);  // prints a notice of its own
  std::_Exit(exit_code);
}

bool MpiSession::initialised() {
  int initialised = 0, finalised = 0;
  MPI_Initialized(&initialised);
  MPI_Finalized(&finalised);
  return initialised && !finalised;
}

std::unique_ptr<Communicator> make_mpi_communicator(int64_t message_bytes) {
  LN_CHECK(MpiSession::initialised(), "no MpiSession: construct one first thing in main");
  LN_CHECK(message_bytes >= 8 && message_bytes <= kLargestMpiMessage,
           "messages of {} bytes; 8 to {} are allowed", message_bytes, kLargestMpiMessage);
  internal::set_identity(job().rank, gather_hosts());
  MPI_Comm comm = MPI_COMM_NULL;
  {
    const internal::BlockingCall watched("start of the job", job().rank, job().size);
    LN_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &comm));
  }
  return std::make_unique<MpiCommunicator>(
      comm, std::make_shared<const std::vector<int>>(find_nodes(comm)), message_bytes);
}

}  // namespace longnet
