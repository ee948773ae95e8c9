// The CPU kernel rows: one implementation of the arithmetic per instruction set, best first, the first supported wins.
// A row is tables of functions: matrix products in exact (gemm.h) and in fast arithmetic (fold.h), everything else
// (vector.h), and what measures its instructions at their best (peak.h). Packed weights belong to the row that packed them.
// Not here: the choice by name (ops.cpp), threads (pool.h).
#pragma once

namespace ld {

struct GemmKernels;    // gemm.h
struct FoldKernels;    // fold.h
struct VectorKernels;  // vector.h
struct PeakKernels;    // peak.h

struct KernelRow {
  const char* name;     // as users type it: "avx2"
  bool (*supported)();  // whether this processor and operating system can run it
  const GemmKernels* gemm;
  const FoldKernels* fold;
  const VectorKernels* vector;
  const PeakKernels* peak;
};

// All rows of this build in priority order; the last, "scalar", is always supported.
const KernelRow* kernel_rows(int* count);

}  // namespace ld
