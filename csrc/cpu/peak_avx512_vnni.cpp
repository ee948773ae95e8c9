// Peak of AVX-512 with VNNI: vpdpbusd on 64 bytes, vfmadd on sixteen floats.
#include <immintrin.h>

#include <cstring>

#include "cpu/peak.h"

namespace ld {
namespace {

using Wide = __m512i;
using Floats = __m512;

constexpr int kAccumulators = 12, kInt8Operations = 128, kF32Operations = 32;

// Written out because GCC 12 copies accumulators around the intrinsic.
inline void int8_step(Wide& sum, Wide& a, Wide b) { asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }
inline void f32_step(Floats& sum, Floats& a, Floats b) { sum = _mm512_fmadd_ps(a, b, sum); }

#include "cpu/peak.inl"

}  // namespace

const PeakKernels peak_avx512_vnni = {kAccumulators * kInt8Operations, kAccumulators* kF32Operations, int8_burst,
                                      f32_burst, read_burst};

}  // namespace ld
