// The CPU kernel rows: one implementation of the arithmetic per instruction set, best first, the first supported wins.
// A row is two tables of functions, matrix products (gemm.h) and everything else (vector.h), and a third that measures
// what its instructions can do at best (peak.h). Packed weights belong to the row that packed them.
// Not here: the choice by name (ops.cpp), threads (pool.h).
#pragma once

namespace ld {

struct GemmKernels;    // gemm.h
struct VectorKernels;  // vector.h
struct PeakKernels;    // peak.h

struct KernelRow {
  const char* name;     // as users type it: "avx2"
  bool (*supported)();  // whether this processor and operating system can run it
  const GemmKernels* gemm;
  const VectorKernels* vector;
  const PeakKernels* peak;
};

// All rows of this build in priority order; the last, "scalar", is always supported.
const KernelRow* kernel_rows(int* count);

}  // namespace ld
