// What the emulator of tests/cuda is trusted to find, on kernels made wrong for it: barriers and waits that are missing,
// blocks that depend on each other, shared and device memory that nobody wrote, and writes past the end of an allocation.
// Not here: the kernels of csrc/cuda (test_cuda*.cpp; run them with LD_EMULATED_ORDER and LD_EMULATED_FILL too).
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <vector>

#include "cuda/runtime.h"
#include "test.h"

using namespace ld;

namespace {

constexpr int kThreads = 64, kBlocks = 3;
#ifdef __SANITIZE_THREAD__
constexpr bool kSeesRaces = true;
#else
constexpr bool kSeesRaces = false;
#endif

class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    before_ = getenv(name) ? getenv(name) : "";
    value == nullptr ? unsetenv(name) : setenv(name, value, 1);
  }
  ~Variable() { before_.empty() ? unsetenv(name_) : setenv(name_, before_.c_str(), 1); }

 private:
  const char* name_;
  std::string before_;
};

enum class Between { nothing, shuffle, warp_barrier, barrier };

// The value of the thread beside it, through shared memory.
template <Between kBetween>
void swap_kernel(int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = blockIdx.x * 1000 + threadIdx.x;
  if (kBetween == Between::shuffle) __shfl_sync(~0u, 0, 0);
  if (kBetween == Between::warp_barrier) __syncwarp();
  if (kBetween == Between::barrier) __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = values[threadIdx.x ^ 1];
  __syncthreads();
}

// The same by copies, with one of the two things left out that make them visible.
template <bool kWaits, bool kMeets>
void copy_kernel(int* out) {
  alignas(16) __shared__ int values[kThreads][4];
  alignas(16) const int mine[4] = {static_cast<int>(blockIdx.x * 1000 + threadIdx.x)};
  cuda::copy_sixteen(values[threadIdx.x], mine, threadIdx.x != 63);
  if (kWaits) cuda::wait_copies();
  if (kMeets) __syncthreads();
  const int found = values[threadIdx.x ^ 1][0];
  out[blockIdx.x * kThreads + threadIdx.x] = threadIdx.x == 62 ? found + blockIdx.x * 1000 + 63 : found;
  cuda::wait_copies();
  __syncthreads();
}

void last_block_kernel(int* out) { *out = blockIdx.x; }

// The first value is left as it was, and then written.
void unwritten_kernel(int* out) {
  __shared__ int values[kThreads];
  if (threadIdx.x > 0) values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = values[threadIdx.x];
  values[threadIdx.x] = 5;
}

template <class Kernel>
std::vector<int> results_of(Kernel kernel, int count = kThreads * kBlocks) {
  void* device = nullptr;
  cudaMalloc(&device, count * sizeof(int));
  cuda::launch(dim3(kBlocks), kThreads, nullptr, kernel, static_cast<int*>(device));
  const int* values = static_cast<int*>(device);
  const std::vector<int> copy(values, values + count);
  cudaFree(device);
  return copy;
}

// Whether a process that does this ends as one should.
template <class Work>
bool ends_well(Work work) {
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    if (freopen("/dev/null", "w", stderr) == nullptr) _exit(1);
    work();
    exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return status == 0;
}

// Whether the kernel gives each thread its neighbour's value in every order; races that are seen end a process.
template <class Kernel>
bool is_right(Kernel kernel) {
  bool right = !kSeesRaces || ends_well([&] { results_of(kernel); });
  for (const char* order : {"", "reversed", "1", "2"}) {
    const Variable set("LD_EMULATED_ORDER", *order ? order : nullptr);
    if (!right) return false;
    const std::vector<int> found = results_of(kernel);
    for (int i = 0; i < kThreads * kBlocks; ++i) right &= found[i] == i / kThreads * 1000 + ((i % kThreads) ^ 1);
  }
  return right;
}

TEST(missing_barriers_are_seen) {
  CHECK(is_right(swap_kernel<Between::barrier>));
  CHECK(is_right(swap_kernel<Between::warp_barrier>));
  CHECK(!is_right(swap_kernel<Between::nothing>));
  CHECK_EQ(is_right(swap_kernel<Between::shuffle>), !kSeesRaces);  // which orders no memory, but is a meeting here
}

TEST(copies_are_visible_after_a_wait_and_a_barrier) {
  CHECK(is_right(copy_kernel<true, true>));
  CHECK(!is_right(copy_kernel<true, false>));
  CHECK(!is_right(copy_kernel<false, true>));
  CHECK(!is_right(copy_kernel<false, false>));
}

TEST(blocks_run_in_other_orders) {
  const auto last = [](const char* order) {
    const Variable set("LD_EMULATED_ORDER", order);
    return results_of(last_block_kernel, 1)[0];
  };
  CHECK_EQ(last(nullptr), kBlocks - 1);
  CHECK_EQ(last("reversed"), 0);
}

TEST(what_nobody_wrote_is_what_is_asked_for) {
  for (const auto& [name, value] : {std::pair("0x11", 0x11111111), std::pair("34", 0x22222222)}) {
    const Variable set("LD_EMULATED_FILL", name);
    const std::vector<int> found = results_of(unwritten_kernel);
    for (int i = 0; i < kThreads * kBlocks; ++i) CHECK_EQ(found[i], i % kThreads ? i % kThreads : value);
    void* device = nullptr;
    cudaMalloc(&device, 2 * sizeof(int));
    CHECK_EQ(static_cast<int*>(device)[1], value);
    cudaFree(device);
  }
}

TEST(a_write_past_the_end_ends_the_process) {
  for (const int at : {9, 10}) {
    CHECK_EQ(at == 9, ends_well([&] {
               void* device = nullptr;
               cudaMalloc(&device, 10);
               static_cast<volatile char*>(device)[at] = 1;
               cudaFree(device);
             }));
  }
}

}  // namespace
