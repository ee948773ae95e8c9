#include "emulator.h"

#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "sanitizers.h"

// Switching by hand: the C library's way saves the signal mask with two system calls each time.
extern "C" void ld_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.type ld_switch, @function
ld_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#else
#error "the emulator switches fibers on x86-64 only"
#endif

namespace ld::cuda {
namespace {

constexpr size_t kStack = 256 << 10;
constexpr int kLanes = 32;
constexpr size_t kMostExchanged = 64;
constexpr size_t kMostShared = 227 << 10;  // of a block, on sm_90

struct Copy {
  int group;  // closed groups before it
  void* to;
  const void* from;
  size_t bytes;
};

struct Fiber {
  void* at;  // its stack pointer while it does not run
  std::unique_ptr<char[]> stack{new char[kStack]};
  Known known{stack.get(), kStack};  // to the sanitizers
  dim3 index{0};
  std::vector<Copy> copies;  // that it has not waited for
  int groups = 0;            // of copies that it closed
  bool done = false;
};

// Barriers count arrivals; `generation` tells those who wait that all have come.
struct Barrier {
  int arrived = 0, generation = 0;
};

std::vector<std::unique_ptr<Fiber>> fibers;
void* scheduler;
Known* scheduler_known;
Fiber* current;
Emulated state;
int n_threads, living;
Barrier block;
Barrier warps[64];
alignas(64) char exchanged[64][kLanes][kMostExchanged];
alignas(1024) __shared__ char dynamic_shared[kMostShared];
size_t shared_given;
const std::function<void()>* running;
long waits;  // since something last moved on

void entry() {
  arrived_at(current->known);
  happens_after(&fibers);
  (*running)();
  if (!current->copies.empty()) report("a thread ends before its copies to shared memory");
  current->done = true;
  --living;
  waits = 0;
  happens_before(&fibers);
  leave_for(*scheduler_known, current->known);
  ld_switch(&current->at, scheduler);
}

// The stack as ld_switch leaves it: six registers, and where to go on.
void prepare(Fiber* fiber) {
  uintptr_t top = reinterpret_cast<uintptr_t>(fiber->stack.get() + kStack) & ~uintptr_t{15};
  void** slots = reinterpret_cast<void**>(top) - 8;
  slots[6] = reinterpret_cast<void*>(entry);
  fiber->at = slots;
}

void yield() {
  if (++waits > 4L * n_threads) report("a barrier that not all threads of the block or warp reach");
  Fiber* self = current;
  leave_for(*scheduler_known, self->known);
  ld_switch(&self->at, scheduler);
  arrived_at(self->known);
  current = self;
  state.thread = self->index;
}

void wait(Barrier& barrier, int expected) {
  const int generation = barrier.generation;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    waits = 0;
    return;
  }
  while (barrier.generation == generation) yield();
}

// Whoever goes on sees what the others wrote before. Neighbouring turns have names of their own: one may begin while some
// have yet to leave the one before.
void ordering_wait(Barrier& barrier, int expected) {
  char* turn = reinterpret_cast<char*>(&barrier) + barrier.generation % 2;
  happens_before(turn);
  wait(barrier, expected);
  happens_after(turn);
}

}  // namespace

void report(const char* what) {
  fprintf(stderr, "emulated CUDA: %s\n", what);
  abort();
}

int fill_byte() {
  const char* wanted = getenv("LD_EMULATED_FILL");
  return wanted == nullptr ? -1 : static_cast<int>(strtoul(wanted, nullptr, 0) & 0xff);
}

Emulated& emulated() { return state; }

void block_barrier() { ordering_wait(block, n_threads); }

void warp_barrier() { ordering_wait(warps[state.thread.x / kLanes], kLanes); }

int block_any(int mine) {
  static int any;
  block_barrier();
  any = 0;
  block_barrier();
  any |= mine;
  block_barrier();
  return any;
}

void exchange(const void* mine, size_t bytes, int lane, void* theirs) {
  if (bytes > kMostExchanged) report("a shuffle of more than 64 bytes");
  const Unseen unseen;
  const int warp = state.thread.x / kLanes, own = state.thread.x % kLanes;
  memcpy(exchanged[warp][own], mine, bytes);
  wait(warps[warp], kLanes);
  memcpy(theirs, exchanged[warp][lane], bytes);
  wait(warps[warp], kLanes);
}

void emulated_copy(void* to, const void* from, size_t bytes) {
  memset(to, 0xff, bytes);
  current->copies.push_back({current->groups, to, from, bytes});
}

void emulated_close_copies() { ++current->groups; }

void emulated_wait_copies(int later) {
  const auto arrives = [&](const Copy& copy) {
    if (later >= 0 && copy.group >= current->groups - later) return false;
    if (copy.from == nullptr) {
      memset(copy.to, 0, copy.bytes);
    } else {
      memcpy(copy.to, copy.from, copy.bytes);
    }
    return true;
  };
  std::vector<Copy>& copies = current->copies;
  copies.erase(std::remove_if(copies.begin(), copies.end(), arrives), copies.end());
}

void* emulated_shared(size_t bytes) {
  if (bytes > shared_given) report("more shared memory than the launch asks for");
  return dynamic_shared;
}

void exchange_matrices(uint32_t (&out)[4], const uint32_t (&row)[4], const void* at) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof row != 0) report("a row of a matrix that is not aligned to 16 bytes");
  const Unseen unseen;
  const int warp = state.thread.x / kLanes, own = state.thread.x % kLanes;
  memcpy(exchanged[warp][own], row, sizeof row);
  wait(warps[warp], kLanes);
  for (int i = 0; i < 4; ++i)
    memcpy(&out[i], exchanged[warp][i * 8 + own / 4] + own % 4 * sizeof out[i], sizeof out[i]);
  wait(warps[warp], kLanes);
}

namespace {

// c += a b of 16 x 16 by 16 x 8 values, two in a word.
template <class Value>
void multiply_pairs(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Value value) {
  struct Fragments {
    float a[8], b[4];
  } mine;
  const Unseen unseen;
  for (int i = 0; i < 8; ++i) mine.a[i] = value(static_cast<uint16_t>(a[i / 2] >> i % 2 * 16));
  for (int i = 0; i < 4; ++i) mine.b[i] = value(static_cast<uint16_t>(b[i / 2] >> i % 2 * 16));
  const int warp = state.thread.x / kLanes, own = state.thread.x % kLanes;
  memcpy(exchanged[warp][own], &mine, sizeof mine);
  wait(warps[warp], kLanes);
  const auto theirs = [&](int lane) { return reinterpret_cast<const Fragments*>(exchanged[warp][lane]); };
  for (int i = 0; i < 4; ++i) {
    const int row = own / 4 + (i / 2) * 8, column = own % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) {
      const int lane = k % 8 / 2, half = k / 8;
      sum += theirs(row % 8 * 4 + lane)->a[(row / 8 + half * 2) * 2 + k % 2] *
             theirs(column * 4 + lane)->b[half * 2 + k % 2];
    }
    c[i] += sum;
  }
  wait(warps[warp], kLanes);
}

}  // namespace

void emulated_mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_pairs(c, a, b, bfloat_to_float);
}

void emulated_mma_halves(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_pairs(c, a, b, half_to_float);
}

namespace {

// One output of a product of bytes: a lane's registers of A hold [row][k] as at_a says where, those of B [k][column].
struct Bytes {
  uint32_t a[4], b[2];
};
struct Place {
  int lane, reg;  // of four neighbouring values of k
};

template <class AtA, class AtB>
void multiply_bytes(const Bytes& mine, int depth, int32_t* c, int outputs, AtA at_a, AtB at_b) {
  const Unseen unseen;
  const int warp = state.thread.x / kLanes, own = state.thread.x % kLanes;
  memcpy(exchanged[warp][own], &mine, sizeof mine);
  wait(warps[warp], kLanes);
  const auto byte = [&](Place place, bool of_a, int k) {
    Bytes theirs;
    memcpy(&theirs, exchanged[warp][place.lane], sizeof theirs);
    return static_cast<int8_t>((of_a ? theirs.a : theirs.b)[place.reg] >> 8 * (k % 4));
  };
  for (int i = 0; i < outputs; ++i) {
    const int row = own / 4 + i / 2 * 8, column = own % 4 * 2 + i % 2;
    for (int k = 0; k < depth; ++k) c[i] += byte(at_a(row, k), true, k) * byte(at_b(k, column), false, k);
  }
  wait(warps[warp], kLanes);
}

}  // namespace

void emulated_mma_8x8x16(int32_t& c0, int32_t& c1, uint32_t a, uint32_t b) {
  int32_t c[2] = {c0, c1};
  multiply_bytes(
      {{a}, {b}}, 16, c, 2,
      [](int row, int k) {
        return Place{row * 4 + k / 4, 0};
      },
      [](int k, int column) {
        return Place{column * 4 + k / 4, 0};
      });
  c0 = c[0];
  c1 = c[1];
}

void emulated_mma_16x8x16(int32_t (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  multiply_bytes(
      {{a0, a1}, {b}}, 16, c, 4,
      [](int row, int k) {
        return Place{row % 8 * 4 + k / 4, row / 8};
      },
      [](int k, int column) {
        return Place{column * 4 + k / 4, 0};
      });
}

void emulated_mma_16x8x32(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_bytes(
      {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, 32, c, 4,
      [](int row, int k) {
        return Place{row % 8 * 4 + k % 16 / 4, row / 8 + k / 16 * 2};
      },
      [](int k, int column) {
        return Place{column * 4 + k % 16 / 4, k / 16};
      });
}

namespace {

// Who runs when: in the order of their numbers, or as $LD_EMULATED_ORDER says.
class Order {
 public:
  Order() {
    const char* wanted = getenv("LD_EMULATED_ORDER");
    if (wanted == nullptr) return;
    reversed_ = strcmp(wanted, "reversed") == 0;
    char* end = nullptr;
    if (!reversed_) random_.seed(static_cast<unsigned>(strtoul(wanted, &end, 10)));
    if (!reversed_ && (*wanted == 0 || *end != 0)) report("LD_EMULATED_ORDER is neither reversed nor a seed");
    shuffled_ = !reversed_;
  }
  void fill(std::vector<unsigned>* numbers, size_t count) {
    numbers->resize(count);
    std::iota(numbers->begin(), numbers->end(), 0u);
    if (reversed_) std::reverse(numbers->begin(), numbers->end());
    next(numbers);
  }
  // The order of the next round.
  void next(std::vector<unsigned>* numbers) {
    if (shuffled_) std::shuffle(numbers->begin(), numbers->end(), random_);
  }

 private:
  bool reversed_ = false, shuffled_ = false;
  std::minstd_rand random_;
};

// Before the first block of a launch all of shared memory is overwritten, then what that block wrote to.
void overwrite(std::vector<std::span<char>>* shared, int byte, unsigned blocks_done) {
  if (blocks_done == 1) {
    const auto untouched = [&](std::span<char> part) {
      return std::all_of(part.begin(), part.end(), [&](char c) { return c == static_cast<char>(byte); });
    };
    std::erase_if(*shared, untouched);
  }
  for (const std::span<char> part : *shared) memset(part.data(), byte, part.size());
}

void run_block(const std::vector<unsigned>& first, Order* order) {
  for (const unsigned t : first) {
    Fiber& fiber = *fibers[t];
    prepare(&fiber);
    fiber.index = dim3(t);
    fiber.done = false;
  }
  living = n_threads;
  waits = 0;
  Known here;
  scheduler_known = &here;
  happens_before(&fibers);
  for (std::vector<unsigned> round = first; living > 0; order->next(&round)) {
    for (const unsigned t : round) {
      if (fibers[t]->done) continue;
      current = fibers[t].get();
      state.thread = current->index;
      leave_for(current->known, here);
      ld_switch(&scheduler, current->at);
      arrived_at(here);
    }
  }
  happens_after(&fibers);
  if (block.arrived) report("threads ended while others wait at a barrier");
}

}  // namespace

void emulate(dim3 grid, unsigned threads, const std::function<void()>& body, size_t shared_bytes) {
  if (shared_bytes > kMostShared) report("more shared memory than a block has");
  shared_given = shared_bytes;
  forbid(dynamic_shared, kMostShared);
  allow(dynamic_shared, shared_given);
  if (threads == 0 || threads % kLanes != 0 || threads > 1024)
    report("a block is not whole warps, 1,024 threads at most");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) report("a grid out of range");
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  running = &body;
  n_threads = static_cast<int>(threads);
  state.grid = grid;
  state.block_dim = dim3(threads);
  Order order;
  std::vector<unsigned> blocks, thread_order;
  order.fill(&blocks, size_t{grid.x} * grid.y * grid.z);
  order.fill(&thread_order, threads);
  const int byte = fill_byte();
  auto shared = byte < 0 ? std::vector<std::span<char>>() : shared_memory();
  for (std::span<char>& part : shared)
    if (part.data() == dynamic_shared) part = part.first(shared_given);
  unsigned done = 0;
  for (const unsigned b : blocks) {
    state.block = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
    overwrite(&shared, byte, done++);
    run_block(thread_order, &order);
  }
}

}  // namespace ld::cuda
