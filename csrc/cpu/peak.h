// What the machine can do at best, measured: multiply-adds in registers and memory reads, per kernel row, on all threads.
// Figures of speed are quoted as a share of these, taken in the same minutes, because shared machines drift. Each row
// writes its instructions once (peak_<row>.cpp) and shares the loops around them (peak.inl). Nothing computes with this.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ld {

class Pool;
struct KernelRow;

constexpr size_t kPeakSource = 1024;

// Bursts of work that depends on nothing but its own accumulators. All return a value to keep the compiler honest.
struct PeakKernels {
  int int8_operations, f32_operations;  // per round, multiply and add counted as two
  // `source` is kPeakSource bytes that the compiler does not know, floats between 0.5 and 1.
  uint64_t (*int8)(const void* source, int rounds);  // the cheapest exact way of the row to sum products of bytes
  uint64_t (*f32)(const void* source, int rounds);
  uint64_t (*read)(const void* from, size_t bytes);  // 64-byte aligned, a multiple of 256 bytes
};

extern const PeakKernels peak_scalar;
#if defined(__x86_64__)
extern const PeakKernels peak_avx2;
extern const PeakKernels peak_avx_vnni;
extern const PeakKernels peak_avx512_vnni;
#elif defined(__aarch64__)
extern const PeakKernels peak_neon_dot;
extern const PeakKernels peak_neon_i8mm;
#endif

// The best burst of each kind within about `seconds`, all threads together, 1e9 operations or bytes per second.
double int8_peak(const KernelRow& row, Pool& pool, double seconds);
double f32_peak(const KernelRow& row, Pool& pool, double seconds);
double memory_peak(const KernelRow& row, Pool& pool, double seconds);  // Error(LD_MEMORY) without 512 MiB

}  // namespace ld
