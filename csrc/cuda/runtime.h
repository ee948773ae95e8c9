// What the device code is written against: CUDA, or the emulator that runs the same kernels on a processor
// (LD_CUDA_EMULATED, tests/cuda/emulator.h), so that every launch is tested where there is no GPU. Kernels use whole warps,
// no atomics on floats, and static shared memory, or up to 64 KiB (sm_75's) and more where LD_LAUNCH_SHARED asks for it.
// Not here: memory of a session (context.h).
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef LD_CUDA_EMULATED
#include "emulator.h"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define LD_LAUNCH(kernel, grid, threads, stream, ...) kernel<<<grid, threads, 0, stream>>>(__VA_ARGS__)
// With a T of the kernel's as dynamic_shared<T>().
#define LD_LAUNCH_SHARED(T, kernel, grid, threads, stream, ...)                               \
  (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int{sizeof(T)}), \
   kernel<<<grid, threads, sizeof(T), stream>>>(__VA_ARGS__))
#define LD_UNROLL _Pragma("unroll")
#define LD_ROLL _Pragma("unroll 1")
#endif

namespace ld::cuda {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

// The shared memory that LD_LAUNCH_SHARED gave, uninitialised.
template <class T>
__device__ T& dynamic_shared() {
#ifdef LD_CUDA_EMULATED
  return *static_cast<T*>(emulated_shared(sizeof(T)));
#else
  extern __shared__ uint4 memory[];
  return *reinterpret_cast<T*>(memory);
#endif
}

__device__ inline float half_value(uint16_t bits) {
#ifdef LD_CUDA_EMULATED
  return half_to_float(bits);
#else
  return __half2float(__ushort_as_half(bits));
#endif
}

__device__ inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

__device__ inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Two floats as bfloat16, rounded to nearest even, the first in the low half.
__device__ inline uint32_t bfloat_pair(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b), "f"(a));
  return pair;
#else
  const auto rounded = [](float x) {
    const uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;  // NaN, whose bits may all be ones
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return rounded(a) | rounded(b) << 16;
#endif
}

__device__ inline uint16_t half_bits(float value) {
#ifdef LD_CUDA_EMULATED
  return float_to_half(value);
#else
  return __half_as_ushort(__float2half_rn(value));
#endif
}

// c += a b for tiles of 16 x 16 by 16 x 8, bfloat16 in, float32 out, one warp; fragments as PTX mma.m16n8k16 lays them out.
__device__ inline void multiply_tile(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef LD_CUDA_EMULATED
  emulated_mma(c, a, b);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The same for halves, in float16 (m16n8k16; sm_75: m16n8k8 twice).
__device__ inline void multiply_halves(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef LD_CUDA_EMULATED
  emulated_mma_halves(c, a, b);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#elif defined(__CUDA_ARCH__)
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four matrices of 8 x 8 values of 16 bits from shared memory, for fragments of the products above: lane i says where the
// sixteen bytes of row i % 8 of matrix i / 8 lie, and gets of each matrix the pair i % 4 of row i / 4.
__device__ inline void load_matrices(uint32_t (&out)[4], const void* row) {
#ifdef LD_CUDA_EMULATED
  emulated_load_matrices(out, row);
#elif defined(__CUDA_ARCH__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

// c += a b for signed bytes, 8 x 16 by 16 x 8 (sm_75), 16 x 16 by 16 x 8 and 16 x 32 by 32 x 8, one warp; fragments as PTX
// lays those of mma.m8n8k16, m16n8k16 and m16n8k32 out.
__device__ inline void multiply_bytes_8x8x16(int32_t& c0, int32_t& c1, uint32_t a, uint32_t b) {
#ifdef LD_CUDA_EMULATED
  emulated_mma_8x8x16(c0, c1, a, b);
#elif defined(__CUDA_ARCH__)
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+r"(c0), "+r"(c1)
      : "r"(a), "r"(b));
#endif
}

__device__ inline void multiply_bytes(int32_t (&c)[4], uint32_t upper, uint32_t lower, uint32_t b) {
#ifdef LD_CUDA_EMULATED
  emulated_mma_16x8x16(c, upper, lower, b);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  multiply_bytes_8x8x16(c[0], c[1], upper, b);
  multiply_bytes_8x8x16(c[2], c[3], lower, b);
#elif defined(__CUDA_ARCH__)
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(upper), "r"(lower), "r"(b));
#endif
}

__device__ inline void multiply_bytes(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef LD_CUDA_EMULATED
  emulated_mma_16x8x32(c, a, b);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  multiply_bytes(c, a[0], a[1], b[0]);
  multiply_bytes(c, a[2], a[3], b[1]);
#elif defined(__CUDA_ARCH__)
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Sixteen or four bytes from global to shared memory, both aligned, or zeros; the thread goes on meanwhile. They are there
// for it after wait_copies(), for the others after a barrier that follows. Before sm_80 they are there at once.
__device__ inline void copy_sixteen(void* to, const void* from, bool present) {
#ifdef LD_CUDA_EMULATED
  emulated_copy(to, present ? from : nullptr, 16);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(__cvta_generic_to_global(from)),
                 "r"(present ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(to) = present ? *static_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
#endif
}

__device__ inline void copy_four(void* to, const void* from, bool present) {
#ifdef LD_CUDA_EMULATED
  emulated_copy(to, present ? from : nullptr, 4);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(__cvta_generic_to_global(from)),
                 "r"(present ? 4 : 0)
               : "memory");
#else
  *static_cast<uint32_t*>(to) = present ? *static_cast<const uint32_t*>(from) : 0;
#endif
}

// Waits for all copies of the thread.
__device__ inline void wait_copies() {
#ifdef LD_CUDA_EMULATED
  emulated_wait_copies();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" : : : "memory");
#endif
}

// Closes a group of the thread's copies, which may be empty.
__device__ inline void close_copies() {
#ifdef LD_CUDA_EMULATED
  emulated_close_copies();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" : : : "memory");
#endif
}

// Waits for the copies of all closed groups but the last kLater.
template <int kLater>
__device__ inline void wait_copies_but() {
#ifdef LD_CUDA_EMULATED
  emulated_wait_copies(kLater);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" : : "n"(kLater) : "memory");
#endif
}

// The sum over a warp, in every lane, always in the same order.
template <class T>
__device__ T warp_sum(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kWholeWarp, value, step);
  return value;
}

// The sum over a block of kThreads threads, in every thread; a barrier before and after.
template <int kThreads, class T>
__device__ T block_sum(T value) {
  __shared__ T sums[kThreads / kWarp];
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = sums[0];
  for (int i = 1; i < kThreads / kWarp; ++i) total += sums[i];
  return total;
}

}  // namespace ld::cuda
