// The SIMT emulator: a pool of fibers, a scheduler for one block at a time, barriers, warp
// rendezvous, asynchronous copies, and (race build) a shadow of every byte that kernels touch.
//
// Compiled without sanitizers in all three programs: it tells ASan about stack switches itself, and
// its own accesses must not be taken for a kernel's. Single-threaded.
#include "simt/emulator.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <boost/context/fiber.hpp>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/device_runtime.h"
#include "simt/device.h"

#if defined(LN_SIMT_ASAN)
extern "C" void __sanitizer_start_switch_fiber(void** fake, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* fake, const void** bottom, size_t* size);
#else
static void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
static void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif

// --- 1. state ---------------------------------------------------------------------------------

namespace longnet::simt {

Coordinates at;
int bug = 0;

namespace {

namespace ctx = boost::context;

constexpr int kMaxThreads = 1024;
#if defined(LN_SIMT_ASAN)
constexpr size_t kStackBytes = 512 * 1024;
#else
constexpr size_t kStackBytes = 128 * 1024;
#endif
constexpr size_t kGuardBytes = 4096;

struct Cancelled {};  // unwinds a fiber whose block failed

struct AsyncCopy {
  void* destination;
  const void* source;
  uint32_t where;  // place_of
};

enum class State { kRunnable, kBarrier, kWarp, kDone };

struct Thread {
  ctx::fiber fiber;
  char* stack = nullptr;
  void* fake_stack = nullptr;
  State state = State::kDone;
  const char* file = "";
  int line = 0;
  std::vector<AsyncCopy> uncommitted;
  std::deque<std::vector<AsyncCopy>> groups;
};

struct Warp {
  const char* name = nullptr;  // operation in progress, null: none
  uint32_t arrived = 0;
  WarpCall call{};
  void (*function)(const WarpCall&) = nullptr;
  const char* file = "";
  int line = 0;
  uint32_t live = 0;      // lanes not done
  uint32_t runnable = 0;  // lanes
  uint32_t syncs = 0;     // full-warp memory-ordering points so far, over all blocks
};

struct Machine {
  std::vector<std::unique_ptr<Thread>> threads;
  Warp warps[kMaxThreads / 32];
  char* stacks = nullptr;
  ctx::fiber scheduler;
  void* scheduler_fake = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  const Launch* launch = nullptr;
  char* shared = nullptr;
  bool cancelling = false;
  int thread_count = 0, at_barrier = 0, done = 0;
  Order order = Order::kAscending;
  std::mt19937_64 random{1};
  int priority[kMaxThreads / 32];  // of warps, order kSkewed
  std::vector<std::string> findings;
  Counters counters;
  // Race checking: epochs rise at every barrier and block, and never fall.
  uint32_t epoch = 1, block_epoch = 1, launch_epoch = 1;
};
// Never destroyed: its fibers are parked inside a loop that has no end.
Machine& m = *new Machine;
/// The thread whose kernel code runs; -1: host code. Set before any constructor runs.
constinit int current_thread = -1;

void finding(const std::string& text) {
  if (m.findings.size() < 12 &&
      std::find(m.findings.begin(), m.findings.end(), text) == m.findings.end())
    m.findings.push_back(text);
}
std::string place(const char* file, int line) {
  const char* slash = std::strrchr(file, '/');
  return std::string(slash ? slash + 1 : file) + ":" + std::to_string(line);
}
std::string who(int thread) {
  return "block (" + std::to_string(at.block.x) + "," + std::to_string(at.block.y) + "," +
         std::to_string(at.block.z) + ") thread " + std::to_string(thread);
}

// --- 2. fibers ---------------------------------------------------------------------------------

struct PoolStack {
  char* base;
  ctx::stack_context allocate() {
    ctx::stack_context s;
    s.size = kStackBytes;
    s.sp = base + kStackBytes;
    return s;
  }
  void deallocate(ctx::stack_context&) {}
};

/// To the scheduler and back; throws Cancelled if the block is being given up.
void park() {
  Thread& t = *m.threads[current_thread];
  __sanitizer_start_switch_fiber(&t.fake_stack, m.scheduler_bottom, m.scheduler_size);
  m.scheduler = std::move(m.scheduler).resume();
  __sanitizer_finish_switch_fiber(t.fake_stack, &m.scheduler_bottom, &m.scheduler_size);
  if (m.cancelling) throw Cancelled{};
}

ctx::fiber fiber_main(ctx::fiber&& from, Thread* t) {
  m.scheduler = std::move(from);
  __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_bottom, &m.scheduler_size);
  for (;;) {
    try {
      if (m.cancelling) throw Cancelled{};
      m.launch->body(m.launch->arguments);
      if (!t->uncommitted.empty() || !t->groups.empty())
        finding("cp.async never waited for by " + who(current_thread));
    } catch (const Cancelled&) {
    } catch (const std::exception& error) {
      finding(std::string("exception in a kernel: ") + error.what());
    }
    t->uncommitted.clear();
    t->groups.clear();
    t->state = State::kDone;
    __sanitizer_start_switch_fiber(&t->fake_stack, m.scheduler_bottom, m.scheduler_size);
    m.scheduler = std::move(m.scheduler).resume();
    __sanitizer_finish_switch_fiber(t->fake_stack, &m.scheduler_bottom, &m.scheduler_size);
  }
}

void make_threads(int count) {
  if (m.stacks == nullptr) {
    void* memory = mmap(nullptr, kMaxThreads * (kStackBytes + kGuardBytes), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("no memory for fiber stacks");
    m.stacks = static_cast<char*>(memory);
    for (int i = 0; i < kMaxThreads; ++i)
      mprotect(m.stacks + i * (kStackBytes + kGuardBytes), kGuardBytes, PROT_NONE);
  }
  while (static_cast<int>(m.threads.size()) < count) {
    auto thread = std::make_unique<Thread>();
    Thread* t = thread.get();
    t->stack = m.stacks + m.threads.size() * (kStackBytes + kGuardBytes) + kGuardBytes;
    t->fiber = ctx::fiber(std::allocator_arg, PoolStack{t->stack},
                          [t](ctx::fiber&& from) { return fiber_main(std::move(from), t); });
    m.threads.push_back(std::move(thread));
  }
}

void set_coordinates(int thread) {
  const dim3 size = m.launch->block;
  at.thread.x = thread % size.x;
  at.thread.y = thread / size.x % size.y;
  at.thread.z = thread / size.x / size.y;
}

void resume(int thread) {
  Thread& t = *m.threads[thread];
  ++m.counters.switches;
  current_thread = thread;
  set_coordinates(thread);
  __sanitizer_start_switch_fiber(&m.scheduler_fake, t.stack, kStackBytes);
  t.fiber = std::move(t.fiber).resume();
  __sanitizer_finish_switch_fiber(m.scheduler_fake, nullptr, nullptr);
  current_thread = -1;
  if (t.state == State::kRunnable) std::abort();
  Warp& warp = m.warps[thread / 32];
  if (t.state == State::kDone) {
    warp.live &= ~(1u << thread % 32);
    warp.runnable &= ~(1u << thread % 32);
    ++m.done;
  }
}

// --- 3. schedule -------------------------------------------------------------------------------

int pick_lane(uint32_t mask, bool any) {
  if (!any) return std::countr_zero(mask);
  const int turn = static_cast<int>(m.random() % 32);
  return (std::countr_zero(std::rotr(mask, turn)) + turn) % 32;
}

/// The next thread to run, -1: none can.
int pick() {
  const int warps = (m.thread_count + 31) / 32;
  switch (m.order) {
    case Order::kAscending:
      for (int w = 0; w < warps; ++w)
        if (m.warps[w].runnable) return w * 32 + std::countr_zero(m.warps[w].runnable);
      return -1;
    case Order::kDescending:
      for (int w = warps - 1; w >= 0; --w)
        if (m.warps[w].runnable) return w * 32 + 31 - std::countl_zero(m.warps[w].runnable);
      return -1;
    case Order::kRandom: {
      const int first = static_cast<int>(m.random() % warps);
      for (int i = 0; i < warps; ++i) {
        const int w = (first + i) % warps;
        if (m.warps[w].runnable) return w * 32 + pick_lane(m.warps[w].runnable, true);
      }
      return -1;
    }
    case Order::kSkewed:
      for (int i = 0; i < warps; ++i) {
        const int w = m.priority[i];
        if (m.warps[w].runnable) return w * 32 + pick_lane(m.warps[w].runnable, true);
      }
      return -1;
  }
  return -1;
}

void release_barrier() {
  const char* file = nullptr;
  int line = 0;
  for (int i = 0; i < m.thread_count; ++i) {
    Thread& t = *m.threads[i];
    if (t.state != State::kBarrier) continue;
    if (file == nullptr) {
      file = t.file;
      line = t.line;
    } else if (line != t.line || std::strcmp(file, t.file) != 0) {
      finding("divergent barrier: " + place(file, line) + " and " + place(t.file, t.line) + ", " +
              who(i));
      return;
    }
  }
  for (int i = 0; i < m.thread_count; ++i) {
    Thread& t = *m.threads[i];
    if (t.state != State::kBarrier) continue;
    t.state = State::kRunnable;
    m.warps[i / 32].runnable |= 1u << i % 32;
  }
  m.at_barrier = 0;
  ++m.epoch;
}

void report_deadlock() {
  std::string text = "deadlock:";
  int shown = 0;
  for (int i = 0; i < m.thread_count && shown < 4; ++i) {
    const Thread& t = *m.threads[i];
    if (t.state == State::kDone) continue;
    const bool first =
        i == 0 || m.threads[i - 1]->state != t.state || m.threads[i - 1]->line != t.line;
    if (!first) continue;
    text += " " + who(i) + " waits at " + place(t.file, t.line) +
            (t.state == State::kBarrier ? " (__syncthreads)" : " (warp operation)");
    ++shown;
  }
  finding(text);
}

void run_block() {
  ++m.counters.blocks;
  m.block_epoch = ++m.epoch;
  m.at_barrier = m.done = 0;
  m.cancelling = false;
  const int warps = (m.thread_count + 31) / 32;
  for (int w = 0; w < warps; ++w) {
    const uint32_t lanes =
        m.thread_count - w * 32 >= 32 ? 0xffffffffu : (1u << (m.thread_count - w * 32)) - 1;
    m.warps[w].name = nullptr;
    m.warps[w].arrived = 0;
    m.warps[w].live = m.warps[w].runnable = lanes;
    m.priority[w] = w;
  }
  std::shuffle(m.priority, m.priority + warps, m.random);
  for (int i = 0; i < m.thread_count; ++i) m.threads[i]->state = State::kRunnable;
  while (m.done < m.thread_count) {
    const int next = pick();
    if (next >= 0) {
      resume(next);
    } else if (m.at_barrier > 0 && m.at_barrier == m.thread_count - m.done) {
      release_barrier();
      if (!m.findings.empty() && m.at_barrier > 0) break;
    } else {
      report_deadlock();
      break;
    }
    // A finding of a warp operation stops the block at once.
    if (m.cancelling) break;
  }
  if (m.done == m.thread_count) return;
  // Unwind what is half run.
  m.cancelling = true;
  for (int i = 0; i < m.thread_count; ++i) {
    if (m.threads[i]->state != State::kDone) resume(i);
  }
  m.cancelling = false;
}

}  // namespace

// --- 4. what kernels call -----------------------------------------------------------------------

unsigned lane_index() { return static_cast<unsigned>(current_thread) % 32; }

void* shared_memory(size_t bytes, const char* file, int line) {
  if (bytes > m.launch->shared_bytes) {
    finding("shared memory of " + std::to_string(bytes) + " bytes at " + place(file, line) +
            ", launched with " + std::to_string(m.launch->shared_bytes));
    m.cancelling = true;
    throw Cancelled{};
  }
  return m.shared;
}

void barrier(const char* file, int line) {
  if (m.cancelling) throw Cancelled{};
  Thread& t = *m.threads[current_thread];
  t.state = State::kBarrier;
  t.file = file;
  t.line = line;
  m.warps[current_thread / 32].runnable &= ~(1u << current_thread % 32);
  ++m.at_barrier;
  park();
}

void warp_call(const char* name, uint32_t mask, void* argument, void (*f)(const WarpCall&),
               bool orders_memory, const char* file, int line) {
  if (m.cancelling) throw Cancelled{};
  const int lane = current_thread % 32, first = current_thread - lane;
  Warp& warp = m.warps[current_thread / 32];
  std::string problem;
  // The last warp of a block may be partial: lanes that do not exist are allowed in a full mask.
  const uint32_t exists =
      m.thread_count - first >= 32 ? 0xffffffffu : (1u << (m.thread_count - first)) - 1;
  const uint32_t wanted = mask == 0xffffffffu ? exists : mask;
  if (!(wanted >> lane & 1))
    problem = std::string(name) + " at " + place(file, line) + ": the caller is not in its mask";
  else if ((wanted & warp.live) != wanted)
    problem = std::string(name) + " at " + place(file, line) + ": a lane of the mask has exited";
  else if (warp.name != nullptr &&
           (std::strcmp(warp.name, name) != 0 || warp.line != line || warp.call.mask != wanted ||
            std::strcmp(warp.file, file) != 0 || warp.function != f))
    problem = std::string("divergent warp operations: ") + warp.name + " at " +
              place(warp.file, warp.line) + " and " + name + " at " + place(file, line);
  if (!problem.empty()) {
    finding(problem + ", " + who(current_thread));
    m.cancelling = true;
    throw Cancelled{};
  }
  warp.name = name;
  warp.file = file;
  warp.line = line;
  warp.function = f;
  warp.call.mask = wanted;
  warp.call.file = file;
  warp.call.line = line;
  warp.call.lane[lane] = argument;
  warp.arrived |= 1u << lane;
  Thread& t = *m.threads[current_thread];
  if (warp.arrived != wanted) {
    t.state = State::kWarp;
    t.file = file;
    t.line = line;
    warp.runnable &= ~(1u << lane);
    park();
    return;
  }
  f(warp.call);
  if (orders_memory && wanted == warp.live) ++warp.syncs;
  warp.name = nullptr;
  warp.arrived = 0;
  for (int i = 0; i < 32; ++i) {
    if (!(wanted >> i & 1) || i == lane) continue;
    m.threads[first + i]->state = State::kRunnable;
    warp.runnable |= 1u << i;
  }
  // The last lane to arrive also goes back to the scheduler, so that orders decide who goes on.
  if (m.order != Order::kAscending) {
    t.state = State::kWarp;
    t.file = file;
    t.line = line;
    warp.runnable |= 1u << lane;
    park();
  }
  t.state = State::kRunnable;
}

void check_alignment(const void* address, size_t bytes, const char* what, const char* file,
                     int line) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  finding(std::string(what) + " at " + place(file, line) + ": address not aligned to " +
          std::to_string(bytes) + " bytes, " + who(current_thread));
  m.cancelling = true;
  throw Cancelled{};
}

// --- 5. races: a shadow of every byte -----------------------------------------------------------

namespace {

#if defined(LN_SIMT_RACE)
constexpr bool kRace = true;
#else
constexpr bool kRace = false;
#endif

constexpr uint16_t kManyWarps = 0xffff, kManyLanes = 0x8000;  // | warp

struct alignas(32) Cell {
  uint32_t write_epoch = 0, write_sync = 0, write_pc = 0;
  uint32_t read_epoch = 0, read_sync = 0, read_pc = 0;
  uint32_t older_read_epoch = 0;  // by another block of the same launch
  uint16_t write_thread = 0, read_thread = 0;
};

static_assert(sizeof(Cell) == 32);  // no padding: same() compares all of it

bool same(const Cell& a, const Cell& b) {
  uint64_t x[4], y[4];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  return ((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3])) == 0;
}

constexpr uintptr_t kPage = 4096;
std::vector<Cell> shared_cells;
std::unordered_map<uintptr_t, std::unique_ptr<Cell[]>> pages;
struct CachedPage {
  uintptr_t page = 0;
  Cell* cells = nullptr;
};
CachedPage page_cache[256];

Cell* global_cell(uintptr_t address) {
  const uintptr_t page = address / kPage;
  CachedPage& cached = page_cache[page % 256];
  if (cached.page != page || cached.cells == nullptr) {
    std::unique_ptr<Cell[]>& cells = pages[page];
    if (!cells) cells = std::make_unique<Cell[]>(kPage);
    cached = {page, cells.get()};
  }
  return cached.cells + address % kPage;
}

extern "C" char __executable_start;

// Where an access was made, in 32 bits: an address in the program of code that was compiled with
// hooks, or, with the highest bit set, one of the places below, of an instruction that is a model.
constexpr uint32_t kInstruction = 1u << 31;
struct Place {
  const char* file;
  int line;
  bool operator==(const Place&) const = default;
};
std::vector<Place> instructions;

[[maybe_unused]] uint32_t place_of(const void* return_address) {
  return static_cast<uint32_t>(static_cast<const char*>(return_address) - &__executable_start);
}
uint32_t place_of(const char* file, int line) {
  static uint32_t latest = 0;
  const Place wanted{file, line};
  if (latest < instructions.size() && instructions[latest] == wanted) return latest | kInstruction;
  const auto found = std::find(instructions.begin(), instructions.end(), wanted);
  latest = static_cast<uint32_t>(found - instructions.begin());
  if (found == instructions.end()) instructions.push_back(wanted);
  return latest | kInstruction;
}

std::string source_line(uint32_t pc) {
  if (pc & kInstruction)
    return place(instructions[pc & ~kInstruction].file, instructions[pc & ~kInstruction].line);
  char command[512], text[256] = "?";
  char path[256];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  if (length <= 0) return "?";
  path[length] = 0;
  std::snprintf(command, sizeof command, "addr2line -e '%s' 0x%x 2> /dev/null", path, pc - 1);
  if (FILE* pipe = popen(command, "r")) {
    if (std::fgets(text, sizeof text, pipe) == nullptr) std::strcpy(text, "?");
    pclose(pipe);
  }
  std::string line(text);
  line = line.substr(0, line.find_first_of(" \n"));
  const size_t slash = line.rfind('/');
  return slash == std::string::npos ? line : line.substr(slash + 1);
}

struct Race {
  const char* kind;
  uint32_t pc, other_pc;
  int thread, other;
  bool operator==(const Race& o) const {
    return kind == o.kind && pc == o.pc && other_pc == o.other_pc;
  }
};
std::vector<Race> races;

void race(const char* kind, uint32_t pc, uint32_t other_pc, int thread, int other) {
  const Race r{kind, pc, other_pc, thread, other};
  if (races.size() < 8 && std::find(races.begin(), races.end(), r) == races.end())
    races.push_back(r);
}

/// True unless the earlier access (epoch, sync, thread) is ordered before thread's access now.
bool unordered(uint32_t epoch, uint32_t sync, int thread, int now, bool shared) {
  if (epoch < m.launch_epoch) return false;
  if (epoch < m.block_epoch) return !shared;  // another block of this launch
  if (epoch < m.epoch || thread == now) return false;
  if (thread == kManyWarps) return true;
  const int warp = thread & kManyLanes ? thread & ~kManyLanes : thread / 32;
  return warp != now / 32 || sync >= m.warps[warp].syncs;
}

void access_cell(Cell& c, bool write, bool shared, uint32_t pc, int now) {
  const uint32_t sync = m.warps[now / 32].syncs;
  if (unordered(c.write_epoch, c.write_sync, c.write_thread, now, shared))
    race(write ? "write after write" : "read after write", pc, c.write_pc, now, c.write_thread);
  if (write) {
    if (unordered(c.read_epoch, c.read_sync, c.read_thread, now, shared) ||
        (!shared && c.older_read_epoch >= m.launch_epoch && c.older_read_epoch < m.block_epoch))
      race("write after read", pc, c.read_pc, now, c.read_thread);
    c.write_epoch = m.epoch;
    c.write_sync = sync;
    c.write_pc = pc;
    c.write_thread = static_cast<uint16_t>(now);
    return;
  }
  if (shared && c.write_epoch < m.block_epoch)
    race("read of unwritten shared memory", pc, pc, now, now);
  uint16_t reader = static_cast<uint16_t>(now);
  if (c.read_epoch == m.epoch && c.read_thread != now) {
    const int warp = c.read_thread == kManyWarps  ? -1
                     : c.read_thread & kManyLanes ? c.read_thread & ~kManyLanes
                                                  : c.read_thread / 32;
    reader = warp == now / 32 ? static_cast<uint16_t>(kManyLanes | warp) : kManyWarps;
  } else if (c.read_epoch < m.block_epoch && c.read_epoch >= m.launch_epoch) {
    c.older_read_epoch = c.read_epoch;
  }
  c.read_epoch = m.epoch;
  c.read_sync = sync;
  c.read_pc = pc;
  c.read_thread = reader;
}

/// access_cell() of neighbours. Bytes of one value mostly have one history, so what became of the
/// first is copied to those that were equal to it; their races would be the same lines.
void access_cells(Cell* cells, size_t bytes, bool write, bool shared, uint32_t pc, int now) {
  if (bytes == 0) return;
  const Cell before = cells[0];
  access_cell(cells[0], write, shared, pc, now);
  const Cell after = cells[0];
  for (size_t i = 1; i < bytes; ++i) {
    if (same(cells[i], before))
      cells[i] = after;
    else
      access_cell(cells[i], write, shared, pc, now);
  }
}

void access(const void* pointer, size_t bytes, bool write, uint32_t pc, int now) {
  const char* address = static_cast<const char*>(pointer);
  // Stacks are each thread's own; the emulator's variables are no device memory.
  if (address >= m.stacks && address < m.stacks + kMaxThreads * (kStackBytes + kGuardBytes)) return;
  if (address >= reinterpret_cast<const char*>(&at) &&
      address < reinterpret_cast<const char*>(&at + 1))
    return;
  if (pointer == &bug) return;
  const bool shared = address >= m.shared && address < m.shared + m.launch->shared_bytes;
  if (shared) {
    access_cells(shared_cells.data() + (address - m.shared), bytes, write, true, pc, now);
  } else {
    const uintptr_t start = reinterpret_cast<uintptr_t>(address);
    if (start % kPage + bytes <= kPage) {
      access_cells(global_cell(start), bytes, write, false, pc, now);
    } else {
      for (size_t i = 0; i < bytes; ++i)
        access_cell(*global_cell(start + i), write, false, pc, now);
    }
  }
}

void races_to_findings() {
  for (const Race& r : races)
    finding(std::string("race: ") + r.kind + " at " + source_line(r.pc) + " (thread " +
            std::to_string(r.thread) + "), before it " + source_line(r.other_pc) +
            (r.other >= kManyLanes ? " (several threads)"
                                   : " (thread " + std::to_string(r.other) + ")"));
  races.clear();
}

}  // namespace

void note_access(const WarpCall& call, const void* address, size_t bytes, bool write,
                 unsigned lane) {
  if (kRace)
    access(address, bytes, write, place_of(call.file, call.line),
           current_thread - current_thread % 32 + lane);
}

// --- 6. asynchronous copies ---------------------------------------------------------------------

void copy_async(void* shared, const void* source, bool valid, const char* file, int line) {
  check_alignment(shared, 16, "cp.async destination", file, line);
  check_alignment(source, 16, "cp.async source", file, line);
  const uint32_t where = kRace ? place_of(file, line) : 0;
  if (kRace) access(shared, 16, true, where, current_thread);
  std::memset(shared, 0xff, 16);
  m.threads[current_thread]->uncommitted.push_back({shared, valid ? source : nullptr, where});
}
void copy_async_commit() {
  Thread& t = *m.threads[current_thread];
  t.groups.push_back(std::move(t.uncommitted));
  t.uncommitted.clear();
}
void copy_async_wait(int groups_left) {
  Thread& t = *m.threads[current_thread];
  while (static_cast<int>(t.groups.size()) > groups_left) {
    for (const AsyncCopy& copy : t.groups.front()) {
      if (kRace) {
        access(copy.destination, 16, true, copy.where, current_thread);
        if (copy.source) access(copy.source, 16, false, copy.where, current_thread);
      }
      if (copy.source)
        std::memcpy(copy.destination, copy.source, 16);
      else
        std::memset(copy.destination, 0, 16);
    }
    t.groups.pop_front();
  }
}

// --- 7. launches --------------------------------------------------------------------------------

const char* order_name(Order order) {
  const char* names[] = {"ascending", "descending", "random", "skewed"};
  return names[static_cast<int>(order)];
}
void set_order(Order order, uint64_t seed) {
  m.order = order;
  m.random.seed(seed);
}
Counters counters() { return m.counters; }
Defect::Defect(int number) { bug = number; }
Defect::~Defect() { bug = 0; }
bool address_checked() {
#if defined(LN_SIMT_ASAN)
  return true;
#else
  return false;
#endif
}
bool race_checked() { return kRace; }

void run(const Launch& launch) {
  const int64_t count = int64_t{launch.block.x} * launch.block.y * launch.block.z;
  const int64_t blocks = int64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  if (count < 1 || count > kMaxThreads || blocks < 1 || launch.grid.y > 65535 ||
      launch.grid.z > 65535 || launch.grid.x > 2147483647u)
    throw std::runtime_error("launch of " + std::to_string(blocks) + " blocks of " +
                             std::to_string(count) + " threads");
  if (static_cast<int64_t>(launch.shared_bytes) > device_runtime::shared_memory_per_block())
    throw std::runtime_error("launch with " + std::to_string(launch.shared_bytes) +
                             " bytes of shared memory");
  ++m.counters.launches;
  m.launch = &launch;
  m.thread_count = static_cast<int>(count);
  m.findings.clear();
  m.launch_epoch = m.epoch + 1;
  make_threads(m.thread_count);
  // Exact size from malloc, so that ASan guards both ends; 16-byte aligned as on the device.
  m.shared = static_cast<char*>(std::malloc(std::max<size_t>(launch.shared_bytes, 1)));
  if (kRace && shared_cells.size() < launch.shared_bytes) shared_cells.resize(launch.shared_bytes);
  at.block_dim = launch.block;
  at.grid_dim = launch.grid;
  std::vector<int64_t> sequence(blocks);
  for (int64_t i = 0; i < blocks; ++i)
    sequence[i] = m.order == Order::kDescending ? blocks - 1 - i : i;
  if (m.order == Order::kRandom || m.order == Order::kSkewed)
    std::shuffle(sequence.begin(), sequence.end(), m.random);
  for (int64_t block : sequence) {
    at.block.x = static_cast<unsigned>(block % launch.grid.x);
    at.block.y = static_cast<unsigned>(block / launch.grid.x % launch.grid.y);
    at.block.z = static_cast<unsigned>(block / launch.grid.x / launch.grid.y);
    std::memset(m.shared, 0xff, launch.shared_bytes);  // NaN
    run_block();
    races_to_findings();
    if (!m.findings.empty()) break;
  }
  std::free(m.shared);
  m.shared = nullptr;
  m.launch = nullptr;
  if (m.findings.empty()) return;
  std::string text = "simt (" + std::string(order_name(m.order)) + "):";
  for (const std::string& f : m.findings) text += "\n  " + f;
  throw std::runtime_error(text);
}

}  // namespace longnet::simt

// --- 8. hooks of -fsanitize=thread --------------------------------------------------------------

#if defined(LN_SIMT_RACE)
#define LN_HOOK(name, bytes, write)                                               \
  extern "C" void name(void* address) {                                           \
    if (longnet::simt::current_thread >= 0)                                       \
      longnet::simt::access(address, bytes, write,                                \
                            longnet::simt::place_of(__builtin_return_address(0)), \
                            longnet::simt::current_thread);                       \
  }
#define LN_HOOKS(n)                          \
  LN_HOOK(__tsan_read##n, n, false)          \
  LN_HOOK(__tsan_write##n, n, true)          \
  LN_HOOK(__tsan_volatile_read##n, n, false) \
  LN_HOOK(__tsan_volatile_write##n, n, true)
LN_HOOKS(1)
LN_HOOKS(2)
LN_HOOKS(4)
LN_HOOKS(8)
LN_HOOKS(16)
#define LN_UNALIGNED(n)                       \
  LN_HOOK(__tsan_unaligned_read##n, n, false) \
  LN_HOOK(__tsan_unaligned_write##n, n, true)
LN_UNALIGNED(2)
LN_UNALIGNED(4)
LN_UNALIGNED(8)
LN_UNALIGNED(16)
extern "C" void __tsan_read_range(void* address, size_t bytes) {
  if (longnet::simt::current_thread >= 0)
    longnet::simt::access(address, bytes, false,
                          longnet::simt::place_of(__builtin_return_address(0)),
                          longnet::simt::current_thread);
}
extern "C" void __tsan_write_range(void* address, size_t bytes) {
  if (longnet::simt::current_thread >= 0)
    longnet::simt::access(address, bytes, true,
                          longnet::simt::place_of(__builtin_return_address(0)),
                          longnet::simt::current_thread);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void*, void*) {}
#endif
