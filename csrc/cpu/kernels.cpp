// The table of kernel rows and what each asks of the processor.
#include "cpu/kernels.h"

#include "cpu/gemm.h"
#include "cpu/vector.h"

namespace ld {
namespace {

bool always() { return true; }

#if defined(__x86_64__)
// The compiler's run-time also asks the operating system whether it saves the wide registers.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512_vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

const KernelRow kRows[] = {
#if defined(__x86_64__)
    {"avx512_vnni", has_avx512_vnni, &gemm_avx512_vnni, &vector_avx512_vnni},
    {"avx2", has_avx2, &gemm_avx2, &vector_avx2},
#endif
    {"scalar", always, &gemm_scalar, &vector_scalar},
};

}  // namespace

const KernelRow* kernel_rows(int* count) {
  *count = sizeof kRows / sizeof kRows[0];
  return kRows;
}

}  // namespace ld
