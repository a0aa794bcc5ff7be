// nccl.h on a machine without NCCL: non-blocking communicators over MPI messages, one rank per MPI
// rank. As with the library a call is only taken when the communicator is polled afterwards, its
// work is queued on the stream (stream_work.h), and a communicator exists when all its ranks have
// come. Sums are in rank order. It models neither algorithms nor speed. Faults: nccl_faults.h.
#include <mpi.h>
#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "simt/ranks/nccl_faults.h"
#include "simt/stream_work.h"

namespace {

using longnet::simt::NcclFault;

// Tags on MPI_COMM_WORLD, on which the program itself sends nothing: 4096 for each context, the
// upper half for sends and receives. Context 0 is for meetings before there is a communicator.
constexpr int kTags = 4096;
constexpr int kPolls = 2;  // that find a call still in progress

void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  std::fprintf(stderr, "the stand-in of NCCL: %s failed with code %d\n", call, code);
  MPI_Abort(MPI_COMM_WORLD, 3);
}
int world_rank() {
  int rank = 0;
  check(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "MPI_Comm_rank");
  return rank;
}

/// Messages under way together.
struct Messages {
  std::vector<MPI_Request> requests;
  void send(const void* data, size_t bytes, int to, int tag) {
    requests.emplace_back();
    check(MPI_Isend(data, static_cast<int>(bytes), MPI_BYTE, to, tag, MPI_COMM_WORLD,
                    &requests.back()),
          "MPI_Isend");
  }
  void receive(void* data, size_t bytes, int from, int tag) {
    requests.emplace_back();
    check(MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, from, tag, MPI_COMM_WORLD,
                    &requests.back()),
          "MPI_Irecv");
  }
  bool arrived() {
    int done = 0;
    check(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done,
                      MPI_STATUSES_IGNORE),
          "MPI_Testall");
    return done != 0;
  }
};

/// One call's share of the work on a stream.
struct Part {
  std::function<void(Messages&)> post;
  std::function<void()> finish;
};
struct Work {
  std::vector<Part> parts;
  Messages messages;
  bool posted = false;
  bool advance() {
    if (!posted)
      for (const Part& part : parts) part.post(messages);
    posted = true;
    if (!messages.arrived()) return false;
    for (const Part& part : parts)
      if (part.finish) part.finish();
    return true;
  }
};

int next_context = 1;
int64_t operations = 0;
std::map<std::string, int64_t> calls;

NcclFault& fault() {
  static NcclFault instance = [] {
    NcclFault chosen;
    const char* text = std::getenv("LN_NCCL_FAULT");
    if (text == nullptr) return chosen;
    longnet::simt::set_patience(0.2);  // of the other ranks, too: they wait for this one
    char kind[16] = {};
    int rank = -1;
    long long operation = 0;
    if (std::sscanf(text, "%15s %d %lld", kind, &rank, &operation) != 3) {
      std::fprintf(stderr, "LN_NCCL_FAULT=%s: KIND RANK OPERATION is wanted\n", text);
      std::exit(2);
    }
    if (rank == world_rank()) chosen = {kind, operation};
    return chosen;
  }();
  return instance;
}

}  // namespace

struct ncclComm {
  int rank = 0;
  std::vector<int> members;  // MPI ranks
  int context = 0;
  int sequence = 0;                           // collectives so far
  std::map<int, int> sends, receives;         // so far, by peer
  std::function<bool()> setting_up;           // of this communicator, or of a child
  std::vector<std::pair<cudaStream_t, std::shared_ptr<Work>>> calls;  // not yet taken
  std::vector<cudaStream_t> streams;          // with work of this communicator
  int polls = 0;                              // until it is taken
  ncclResult_t error = ncclSuccess;

  int size() const { return static_cast<int>(members.size()); }
  int collective_tag() { return context * kTags + sequence++ % (kTags / 2); }
  int message_tag(int& counter) const {
    return context * kTags + kTags / 2 + counter++ % (kTags / 2);
  }
  template <typename Body>
  void for_each_other(const Body& body) const {
    for (int m = 0; m < size(); ++m)
      if (m != rank) body(m, members[m]);
  }
};

namespace {

struct Group {
  int depth = 0;
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
  std::vector<Part> parts;
} group;

/// The communicator's work from now on: queued when the communicator has been polled.
ncclResult_t take(ncclComm_t comm, cudaStream_t stream, std::vector<Part> parts) {
  auto work = std::make_shared<Work>();
  work->parts = std::move(parts);
  const NcclFault& f = fault();
  if (const bool now = operations++ == f.operation; now && !f.kind.empty()) {
    if (f.kind == "refuse") return ncclSystemError;
    if (f.kind == "kill") std::raise(SIGKILL);
    if (f.kind == "error") comm->error = ncclRemoteError;
    work = nullptr;  // never ends
  }
  comm->calls.emplace_back(stream, std::move(work));
  if (std::count(comm->streams.begin(), comm->streams.end(), stream) == 0)
    comm->streams.push_back(stream);
  comm->polls = kPolls;
  return ncclInProgress;
}

ncclResult_t add(const char* name, ncclComm_t comm, cudaStream_t stream, Part part) {
  ++calls[name];
  if (comm == nullptr || comm->setting_up || !comm->calls.empty()) return ncclInvalidUsage;
  if (group.depth == 0) {
    std::vector<Part> parts;
    parts.push_back(std::move(part));
    return take(comm, stream, std::move(parts));
  }
  if (group.comm != nullptr && group.comm != comm) return ncclInvalidUsage;
  group.comm = comm;
  group.stream = stream;
  group.parts.push_back(std::move(part));
  return ncclSuccess;
}

size_t width(ncclDataType_t type) { return type == ncclFloat32 ? 4 : 1; }

using Parts = std::shared_ptr<std::vector<std::vector<float>>>;
Parts make_parts(int members, size_t count) {
  return std::make_shared<std::vector<std::vector<float>>>(members, std::vector<float>(count));
}
/// to [count] = sum of the parts in rank order; own: the part of `rank`.
void add_parts(float* to, const float* own, const Parts& parts, int rank, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    float sum = 0;
    for (int m = 0; m < static_cast<int>(parts->size()); ++m) {
      const float x = m == rank ? own[i] : (*parts)[m][i];
      sum = m == 0 ? x : sum + x;
    }
    to[i] = sum;
  }
}

}  // namespace

namespace longnet::simt {
void set_nccl_fault(const NcclFault& wanted) {
  fault() = wanted;
  operations = 0;
}
int64_t nccl_calls(const std::string& function) { return calls[function]; }
}  // namespace longnet::simt

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    default:
      return "another error";
  }
}
const char* ncclGetLastError(ncclComm_t) { return ""; }

// ------------------------------------------------------------------------------ communicators

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static int last = 0;
  *id = {};
  const int words[2] = {world_rank(), ++last % kTags};
  std::memcpy(id->internal, words, sizeof words);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  ++calls["ncclCommInitRankConfig"];
  fault();  // the environment is read before anything waits
  if (config == nullptr || config->blocking != 0 || rank < 0 || rank >= ranks)
    return ncclInvalidArgument;
  if (fault().kind == "fail_to_connect") return ncclSystemError;
  while (fault().kind == "never_connect") std::this_thread::sleep_for(std::chrono::seconds(1));
  int words[2];
  std::memcpy(words, id.internal, sizeof words);
  const int meeting = words[0], tag = words[1];
  auto* c = new ncclComm;
  *comm = c;
  c->rank = rank;
  c->members.assign(ranks, -1);
  struct Meeting {
    Messages messages;
    std::vector<int> mine, list;
    std::vector<std::vector<int>> hellos;
    int step = 0;
  };
  auto m = std::make_shared<Meeting>();
  c->setting_up = [c, m, ranks, rank, meeting, tag] {
    const int me = world_rank();
    if (m->step == 0) {
      m->mine = {rank, me, next_context};
      m->list.assign(ranks + 1, -1);
      if (me == meeting) {
        m->hellos.assign(ranks - 1, std::vector<int>(3));
        for (auto& hello : m->hellos) m->messages.receive(hello.data(), 12, MPI_ANY_SOURCE, tag);
      } else {
        m->messages.send(m->mine.data(), 12, meeting, tag);
        m->messages.receive(m->list.data(), 4 * m->list.size(), meeting, tag);
      }
      m->step = 1;
    }
    if (!m->messages.arrived()) return false;
    if (m->step == 1 && me == meeting) {
      m->hellos.push_back(m->mine);
      m->list[ranks] = 0;
      for (const auto& hello : m->hellos) {
        m->list[hello[0]] = hello[1];
        m->list[ranks] = std::max(m->list[ranks], hello[2]);
      }
      m->messages.requests.clear();
      for (int r = 0; r < ranks; ++r)
        if (r != rank) m->messages.send(m->list.data(), 4 * m->list.size(), m->list[r], tag);
      m->step = 2;
      if (!m->messages.arrived()) return false;
    }
    c->members.assign(m->list.begin(), m->list.end() - 1);
    c->context = m->list.back();
    next_context = c->context + 1;
    return true;
  };
  c->polls = kPolls;
  return ncclInProgress;
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* child,
                           ncclConfig_t* config) {
  ++calls["ncclCommSplit"];
  if (config == nullptr || config->blocking != 0 || comm->setting_up || !comm->calls.empty())
    return ncclInvalidUsage;
  *child = nullptr;
  struct Meeting {
    Messages messages;
    std::vector<std::vector<int>> said;  // by parent's rank: color, key, next context
    bool posted = false;
  };
  auto m = std::make_shared<Meeting>();
  m->said.assign(comm->size(), std::vector<int>(3));
  m->said[comm->rank] = {color, key, next_context};
  const int tag = comm->collective_tag();
  comm->setting_up = [comm, m, color, child, tag] {
    if (!m->posted)
      comm->for_each_other([&](int member, int at) {
        m->messages.receive(m->said[member].data(), 12, at, tag);
        m->messages.send(m->said[comm->rank].data(), 12, at, tag);
      });
    m->posted = true;
    if (!m->messages.arrived()) return false;
    int context = 0;
    std::vector<int> order;
    for (int r = 0; r < comm->size(); ++r) {
      context = std::max(context, m->said[r][2]);
      if (m->said[r][0] == color) order.push_back(r);
    }
    next_context = context + 1;
    if (color == NCCL_SPLIT_NOCOLOR) return true;
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return m->said[a][1] < m->said[b][1]; });
    auto* c = new ncclComm;
    c->context = context;
    for (const int r : order) {
      if (r == comm->rank) c->rank = c->size();
      c->members.push_back(comm->members[r]);
    }
    c->polls = kPolls;
    *child = c;
    return true;
  };
  comm->polls = kPolls;
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  *state = ncclInProgress;
  if (comm->polls > 0) {
    --comm->polls;
    return ncclSuccess;
  }
  if (comm->setting_up) {
    if (!comm->setting_up()) return ncclSuccess;
    comm->setting_up = nullptr;
  }
  for (auto& [stream, work] : comm->calls)
    longnet::simt::enqueue(stream, [work = work] { return work && work->advance(); });
  comm->calls.clear();
  *state = comm->error;
  return ncclSuccess;
}

ncclResult_t ncclCommUserRank(ncclComm_t comm, int* rank) {
  *rank = comm->rank;
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  comm->polls = kPolls;
  return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  delete comm;
  return ncclSuccess;
}

/// What is under way keeps its memory: MPI may still write there.
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  ++calls["ncclCommAbort"];
  for (cudaStream_t stream : comm->streams) longnet::simt::drop_work(stream);
  if (comm->setting_up) new std::function<bool()>(std::move(comm->setting_up));
  delete comm;
  return ncclSuccess;
}

// ------------------------------------------------------------------------------ operations

ncclResult_t ncclGroupStart() {
  ++group.depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (--group.depth > 0) return ncclSuccess;
  Group whole = std::move(group);
  group = {};
  if (whole.comm == nullptr) return ncclSuccess;
  return take(whole.comm, whole.stream, std::move(whole.parts));
}

ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  const int to = comm->members.at(peer), tag = comm->message_tag(comm->sends[peer]);
  return add("ncclSend", comm, stream,
             {[=](Messages& m) { m.send(from, count * width(type), to, tag); }, {}});
}

ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  const int from = comm->members.at(peer), tag = comm->message_tag(comm->receives[peer]);
  return add("ncclRecv", comm, stream,
             {[=](Messages& m) { m.receive(to, count * width(type), from, tag); }, {}});
}

ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  const size_t bytes = count * width(type);
  const int tag = comm->collective_tag();
  return add("ncclAllGather", comm, stream,
             {[=](Messages& m) {
                auto* all = static_cast<char*>(to);
                std::memmove(all + bytes * comm->rank, from, bytes);
                comm->for_each_other([&](int member, int at) {
                  m.receive(all + bytes * member, bytes, at, tag);
                  m.send(all + bytes * comm->rank, bytes, at, tag);
                });
              },
              {}});
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  const size_t bytes = count * width(type);
  const int tag = comm->collective_tag();
  return add("ncclBroadcast", comm, stream,
             {[=](Messages& m) {
                if (comm->rank != root) return m.receive(to, bytes, comm->members[root], tag);
                std::memmove(to, from, bytes);
                comm->for_each_other([&](int, int at) { m.send(to, bytes, at, tag); });
              },
              {}});
}

ncclResult_t ncclReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
  if (type != ncclFloat32 || op != ncclSum) return ncclInvalidArgument;
  const int tag = comm->collective_tag();
  const Parts parts = make_parts(comm->rank == root ? comm->size() : 0, count);
  return add("ncclReduce", comm, stream,
             {[=](Messages& m) {
                if (comm->rank != root) return m.send(from, 4 * count, comm->members[root], tag);
                comm->for_each_other([&](int member, int at) {
                  m.receive((*parts)[member].data(), 4 * count, at, tag);
                });
              },
              [=] {
                if (comm->rank == root)
                  add_parts(static_cast<float*>(to), static_cast<const float*>(from), parts, root,
                            count);
              }});
}

ncclResult_t ncclReduceScatter(const void* from, void* to, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  if (type != ncclFloat32 || op != ncclSum) return ncclInvalidArgument;
  const int tag = comm->collective_tag();
  const Parts parts = make_parts(comm->size(), count);
  const auto* values = static_cast<const float*>(from);
  return add("ncclReduceScatter", comm, stream,
             {[=](Messages& m) {
                comm->for_each_other([&](int member, int at) {
                  m.receive((*parts)[member].data(), 4 * count, at, tag);
                  m.send(values + count * member, 4 * count, at, tag);
                });
              },
              [=] {
                add_parts(static_cast<float*>(to), values + count * comm->rank, parts, comm->rank,
                          count);
              }});
}

ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  if (type != ncclFloat32 || op != ncclSum) return ncclInvalidArgument;
  const int tag = comm->collective_tag();
  const Parts parts = make_parts(comm->size(), count);
  return add("ncclAllReduce", comm, stream,
             {[=](Messages& m) {
                comm->for_each_other([&](int member, int at) {
                  m.receive((*parts)[member].data(), 4 * count, at, tag);
                  m.send(from, 4 * count, at, tag);
                });
              },
              [=] {
                add_parts(static_cast<float*>(to), static_cast<const float*>(from), parts,
                          comm->rank, count);
              }});
}
