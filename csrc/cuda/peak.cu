// What the GPU can do at best: products in registers by each kind of core, and copying. Kernels run longer and longer until
// the clock can tell. Not here: what the products of a model reach (bench/gpu.py).
#include <chrono>

#include "cuda/context.h"

namespace ld {
namespace {

using namespace cuda;

constexpr int kThreads = 256, kChains = 8;  // independent sums, which hide an instruction's latency
constexpr size_t kMostCopied = size_t{1} << 30;

struct Int8Core {
  static constexpr double kOperations = 2.0 * 16 * 8 * 32 / kWarp;  // of a thread's share
  int32_t sums[kChains][4] = {};
  __device__ void step(const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    LD_UNROLL for (int i = 0; i < kChains; ++i) multiply_bytes(sums[i], a, b);
  }
};

struct Bfloat16Core {
  static constexpr double kOperations = 2.0 * 16 * 8 * 16 / kWarp;
  float sums[kChains][4] = {};
  __device__ void step(const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    LD_UNROLL for (int i = 0; i < kChains; ++i) multiply_tile(sums[i], a, b);
  }
};

struct Float32Core {
  static constexpr double kOperations = 2.0 * 4;
  float sums[kChains][4] = {};
  __device__ void step(const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    LD_UNROLL for (int i = 0; i < kChains * 4; ++i) {
      sums[i / 4][i % 4] = fmaf(sums[i / 4][i % 4], float_from_bits(a[i % 4]), float_from_bits(b[i % 2]));
    }
  }
};

template <class Core>
__global__ void peak_kernel(int steps, uint32_t seed, float* sink) {
  Core core;
  const uint32_t a[4] = {seed, seed + 1, seed + 2, seed + threadIdx.x}, b[2] = {seed, seed + threadIdx.x};
  for (int i = 0; i < steps; ++i) core.step(a, b);
  float total = 0;
  for (int i = 0; i < kChains * 4; ++i) total += static_cast<float>(core.sums[i / 4][i % 4]);
  if (total == 1.5f) *sink = total;  // never: the sums must not be found useless
}

// Seconds that run() takes until the device is done.
template <class Run>
double timed(Run run) {
  check(cudaStreamSynchronize(nullptr), "measuring its peak");
  const auto begin = std::chrono::steady_clock::now();
  run();
  check(cudaStreamSynchronize(nullptr), "measuring its peak");
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// 1e9 operations per second of a core.
template <class Core>
double peak_of(unsigned blocks, double seconds, float* sink) {
  for (int steps = 16;; steps *= 2) {
    const double taken = timed([&] { LD_LAUNCH(peak_kernel<Core>, dim3(blocks), kThreads, nullptr, steps, 0u, sink); });
    if (taken < seconds / 2 && steps < 1 << 28) continue;
    return Core::kOperations * kChains * steps * blocks * kThreads / taken / 1e9;
  }
}

double copying(double seconds) {
  size_t free, total;
  check(cudaMemGetInfo(&free, &total), "being asked for its memory");
  const size_t bytes = std::min(kMostCopied, free / 64);
  const Memory from(bytes), to(bytes);
  for (int count = 1;; count *= 2) {
    const double taken = timed([&] {
      for (int i = 0; i < count; ++i) {
        check(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, nullptr), "copying");
      }
    });
    if (taken >= seconds / 2 || count >= 1 << 20) return 2.0 * static_cast<double>(bytes) * count / taken / 1e9;
  }
}

}  // namespace

Peak measure_peak(Device* device, double seconds) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device->index), "being asked for its properties");
  const unsigned blocks = 8u * static_cast<unsigned>(properties.multiProcessorCount);
  const Memory sink(sizeof(float));
  float* to = sink.data<float>();
  Peak peak{1, peak_of<Int8Core>(blocks, seconds / 4, to), peak_of<Float32Core>(blocks, seconds / 4, to),
            copying(seconds / 4)};
  if (properties.major >= 8) peak.bf16_gflops = peak_of<Bfloat16Core>(blocks, seconds / 4, to);
  check(cudaGetLastError(), "measuring its peak");
  return peak;
}

}  // namespace ld
