// The table of kernel rows and what each asks of the processor.
#include "cpu/kernels.h"

#include "cpu/fold.h"
#include "cpu/peak.h"
#include "cpu/vector.h"

#if defined(__x86_64__)
#include "x86.h"
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace ld {
namespace {

bool always() { return true; }

#if defined(__aarch64__)
#if defined(__APPLE__)
bool has_feature(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
bool has_dot() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_dot() && has_feature("hw.optional.arm.FEAT_I8MM"); }
#elif defined(__linux__)
// Bits of the kernel's interface, written out because older headers lack the names.
bool has_dot() { return getauxval(AT_HWCAP) >> 20 & 1; }                 // HWCAP_ASIMDDP
bool has_i8mm() { return has_dot() && getauxval(AT_HWCAP2) >> 13 & 1; }  // HWCAP2_I8MM
#else
bool has_dot() { return false; }
bool has_i8mm() { return false; }
#endif
#endif

const KernelRow kRows[] = {
#if defined(__x86_64__)
    {"avx512_vnni", has_avx512_vnni, &gemm_avx512_vnni, &fold_avx512_vnni, &vector_avx512_vnni, &peak_avx512_vnni},
    {"avx_vnni", has_avx_vnni, &gemm_avx_vnni, &fold_avx_vnni, &vector_avx2, &peak_avx_vnni},
    {"avx2", has_avx2, &gemm_avx2, &fold_avx2, &vector_avx2, &peak_avx2},
#elif defined(__aarch64__)
    {"neon_i8mm", has_i8mm, &gemm_neon_i8mm, &fold_neon_i8mm, &vector_neon_dot, &peak_neon_i8mm},
    {"neon_dot", has_dot, &gemm_neon_dot, &fold_neon_dot, &vector_neon_dot, &peak_neon_dot},
#endif
    {"scalar", always, &gemm_scalar, &fold_scalar, &vector_scalar, &peak_scalar},
};

}  // namespace

const KernelRow* kernel_rows(int* count) {
  *count = sizeof kRows / sizeof kRows[0];
  return kRows;
}

}  // namespace ld
