// The table of kernel rows and what each asks of the processor.
#include "cpu/kernels.h"

#include "cpu/gemm.h"
#include "cpu/peak.h"
#include "cpu/vector.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ld {
namespace {

bool always() { return true; }

#if defined(__x86_64__)
// The compiler's run-time also asks the operating system whether it saves the wide registers.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

// Asked of the processor itself: compilers before GCC 13 do not know the name.
bool has_avx_vnni() {
  unsigned subleaves, a, b, c, d;
  return has_avx2() && __get_cpuid_count(7, 0, &subleaves, &b, &c, &d) && subleaves >= 1 &&
         __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

bool has_avx512_vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

const KernelRow kRows[] = {
#if defined(__x86_64__)
    {"avx512_vnni", has_avx512_vnni, &gemm_avx512_vnni, &vector_avx512_vnni, &peak_avx512_vnni},
    {"avx_vnni", has_avx_vnni, &gemm_avx_vnni, &vector_avx2, &peak_avx_vnni},
    {"avx2", has_avx2, &gemm_avx2, &vector_avx2, &peak_avx2},
#endif
    {"scalar", always, &gemm_scalar, &vector_scalar, &peak_scalar},
};

}  // namespace

const KernelRow* kernel_rows(int* count) {
  *count = sizeof kRows / sizeof kRows[0];
  return kRows;
}

}  // namespace ld
