// The vector kernels for AVX-512: sixteen floats per vector, attention tiles of 12 rows x 2 vectors (24 of 32 registers
// hold sums). Compiled with AVX-512 flags; nothing here may run before the kernel row is known to be supported.
#include <immintrin.h>

#include "cpu/vector.h"

#define LD_WIDTH 16
#define LD_ROWS 12
#define LD_TABLE vector_avx512_vnni

namespace ld {
namespace {

typedef float vf __attribute__((vector_size(64), may_alias));
typedef int32_t vi __attribute__((vector_size(64), may_alias));

inline __attribute__((always_inline)) vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline __attribute__((always_inline)) vf maximum(vf a, vf b) { return _mm512_mask_max_ps(a, 0xFFFF, a, b); }

#include "cpu/vector.inl"

}  // namespace

const VectorKernels LD_TABLE = {produce, rotate, attend, mix, scan, exponentials, above, cut, cap, exponential_of};

}  // namespace ld
