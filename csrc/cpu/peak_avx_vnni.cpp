// Peak of AVX-VNNI: vpdpbusd on 256 bits, vfmadd on eight floats.
#include <immintrin.h>

#include <cstring>

#include "cpu/peak.h"

namespace ld {
namespace {

using Wide = __m256i;
using Floats = __m256;

constexpr int kAccumulators = 10, kInt8Operations = 64, kF32Operations = 16;

inline void int8_step(Wide& sum, Wide& a, Wide b) { asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b)); }
inline void f32_step(Floats& sum, Floats& a, Floats b) { sum = _mm256_fmadd_ps(a, b, sum); }

#include "cpu/peak.inl"

}  // namespace

const PeakKernels peak_avx_vnni = {kAccumulators * kInt8Operations, kAccumulators* kF32Operations, int8_burst,
                                   f32_burst, read_burst};

}  // namespace ld
