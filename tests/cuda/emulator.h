// CUDA on a processor, for tests: the kernels of csrc/cuda compile as plain C++ and run block after block, every thread
// of a block as a fiber that is switched at barriers, shuffles and matrix products. Slow and exact about what CUDA
// promises: shared memory is one block's, a warp is 32 threads, and a barrier that not all threads reach is reported
// instead of hanging. A stream that is captured runs nothing and keeps its launches, arguments by value and copies by their
// addresses, until the graph is launched; what CUDA forbids meanwhile breaks the capture. Not emulated: concurrency of
// blocks and streams, timing.
//
// It checks what compute-sanitizer does on a card. Bounds: memory that is freed was not written past its end, and under
// AddressSanitizer every access to global, shared and page-locked memory. Races: under ThreadSanitizer the accesses of two
// threads of a block that no __syncthreads or __syncwarp parts (shuffles order nothing), and anywhere
// $LD_EMULATED_ORDER=reversed or a seed: another order of blocks and, between barriers, of threads; results stay the same
// bits. Memory that was never written: device memory is full of 0xff, $LD_EMULATED_FILL=BYTE gives another byte and fills
// shared memory with it before every block; again results stay the same bits.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <span>
#include <vector>

#include "quant/half.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((abi_tag("ld_shared")))  // shared_memory.cpp finds it by this name

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct alignas(8) float2 {
  float x, y;
};

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace ld::cuda {

struct Emulated {
  dim3 thread{0}, block{0}, block_dim{1}, grid{1};
};
Emulated& emulated();

// Runs a kernel's body for all threads of all blocks, which have `shared_bytes` beside their static shared memory.
void emulate(dim3 grid, unsigned threads, const std::function<void()>& body, size_t shared_bytes = 0);
void block_barrier();
[[noreturn]] void report(const char* what);
int fill_byte();  // $LD_EMULATED_FILL, or -1
void warp_barrier();
int block_any(int mine);
// The variables that are __shared__, all kernels'.
std::vector<std::span<char>> shared_memory();
// What `lane` of the calling thread's warp handed in; all lanes take part.
void exchange(const void* mine, size_t bytes, int lane, void* theirs);
// A copy whose target holds nothing of use until the thread waits; `from` null = zeros.
void emulated_copy(void* to, const void* from, size_t bytes);
void emulated_close_copies();
void emulated_wait_copies(int later = -1);  // for all but the last groups, -1 = for all
// The shared memory that a launch asked for; more than that is reported.
void* emulated_shared(size_t bytes);
// Fragments of four matrices, as ldmatrix.x4 lays them out; each lane has read a row, at that address.
void exchange_matrices(uint32_t (&out)[4], const uint32_t (&row)[4], const void* at);
inline void emulated_load_matrices(uint32_t (&out)[4], const void* row) {
  uint32_t mine[4];
  memcpy(mine, row, sizeof mine);
  exchange_matrices(out, mine, row);
}
// Products of a warp, of bfloat16, float16 and signed bytes; fragments as PTX lays them out.
void emulated_mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void emulated_mma_halves(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void emulated_mma_8x8x16(int32_t& c0, int32_t& c1, uint32_t a, uint32_t b);
void emulated_mma_16x8x16(int32_t (&c)[4], uint32_t a0, uint32_t a1, uint32_t b);
void emulated_mma_16x8x32(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

}  // namespace ld::cuda

#define threadIdx (::ld::cuda::emulated().thread)
#define blockIdx (::ld::cuda::emulated().block)
#define blockDim (::ld::cuda::emulated().block_dim)
#define gridDim (::ld::cuda::emulated().grid)

inline void __syncthreads() { ld::cuda::block_barrier(); }
inline void __syncwarp(unsigned = 0) { ld::cuda::warp_barrier(); }

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  T other;
  ld::cuda::exchange(&value, sizeof value, lane, &other);
  return other;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int step) {
  return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % 32) ^ step);
}

inline int __any_sync(unsigned mask, int mine) {
  for (int step = 16; step > 0; step /= 2) mine |= __shfl_xor_sync(mask, mine, step);
  return mine;
}
inline int __syncthreads_or(int mine) { return ld::cuda::block_any(mine); }

inline int atomicMin(int* at, int value) {
  const std::atomic_ref<int> shared(*at);
  int before = shared.load(std::memory_order_relaxed);
  while (value < before && !shared.compare_exchange_weak(before, value, std::memory_order_relaxed)) {
  }
  return before;
}

using std::max;
using std::min;

// ---- the part of the run-time library that the host code uses ----

using cudaError_t = int;
// Work that a stream was given while it was captured, in order.
struct EmulatedGraph {
  std::vector<std::function<void()>> work;
};
struct EmulatedStream {
  bool captured = false, broken = false;
  EmulatedGraph graph;
};
using cudaStream_t = EmulatedStream*;
using cudaGraph_t = EmulatedGraph*;
using cudaGraphExec_t = EmulatedGraph*;
constexpr unsigned cudaStreamNonBlocking = 1;
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
constexpr cudaError_t cudaSuccess = 0, cudaErrorStreamCaptureUnsupported = 900, cudaErrorStreamCaptureInvalidated = 901;
struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount;
  size_t totalGlobalMem;
};
cudaError_t cudaMalloc(void** out, size_t bytes);
cudaError_t cudaFree(void* at);
cudaError_t cudaMallocHost(void** out, size_t bytes);
cudaError_t cudaFreeHost(void* at);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph);
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* out, int device);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }

#define LD_UNROLL
#define LD_ROLL
namespace ld::cuda {

// Now, or when the graph is launched that the stream is captured for.
inline void run(cudaStream_t stream, std::function<void()> work) {
  if (stream != nullptr && stream->captured) {
    stream->graph.work.push_back(std::move(work));
  } else {
    work();
  }
}

template <class Kernel, class... Arguments>
void launch_shared(size_t shared, dim3 grid, unsigned threads, cudaStream_t stream, Kernel kernel,
                   Arguments... arguments) {
  run(stream, [=] {
    emulate(
        grid, threads, [&] { kernel(arguments...); }, shared);
  });
}

template <class Kernel, class... Arguments>
void launch(dim3 grid, unsigned threads, cudaStream_t stream, Kernel kernel, Arguments... arguments) {
  launch_shared(0, grid, threads, stream, kernel, arguments...);
}

}  // namespace ld::cuda

#define LD_LAUNCH(kernel, grid, threads, stream, ...) \
  ::ld::cuda::launch(                                 \
      grid, threads, stream, [](auto... arguments) { kernel(arguments...); }, __VA_ARGS__)
#define LD_LAUNCH_SHARED(T, kernel, grid, threads, stream, ...) \
  ::ld::cuda::launch_shared(                                    \
      sizeof(T), grid, threads, stream, [](auto... arguments) { kernel(arguments...); }, __VA_ARGS__)
