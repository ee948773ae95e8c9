// Peak of AVX2: vpmaddubsw and the 16-bit add that every exact use of it needs at least, vfmadd on eight floats.
#include <immintrin.h>

#include <cstring>

#include "cpu/peak.h"

namespace ld {
namespace {

using Wide = __m256i;
using Floats = __m256;

constexpr int kAccumulators = 10, kInt8Operations = 64, kF32Operations = 16;

// The empty statement hides that `a` is always the same, or the product would be taken out of the loop.
inline void int8_step(Wide& sum, Wide& a, Wide b) {
  asm("" : "+x"(a));
  sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b));
}
inline void f32_step(Floats& sum, Floats& a, Floats b) { sum = _mm256_fmadd_ps(a, b, sum); }

#include "cpu/peak.inl"

}  // namespace

const PeakKernels peak_avx2 = {kAccumulators * kInt8Operations, kAccumulators* kF32Operations, int8_burst, f32_burst,
                               read_burst};

}  // namespace ld
