// What the x86 processor at hand can do, as far as files compiled with more than the base instructions ask for. The
// compiler's run-time is asked, which also asks whether the system saves the wide registers; what not every compiler knows
// by name is read from the processor itself.
#pragma once

#include <cpuid.h>

namespace ld {

inline bool has_avx2() {
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) &&
         (c & bit_F16C);
}

inline bool has_avx_vnni() {
  unsigned subleaves, a, b, c, d;
  return has_avx2() && __get_cpuid_count(7, 0, &subleaves, &b, &c, &d) && subleaves >= 1 &&
         __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

inline bool has_avx512_vnni() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

}  // namespace ld
