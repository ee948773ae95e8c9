// The vector kernels for AVX2 with FMA: eight floats per vector, attention tiles of 6 rows x 2 vectors (12 of 16 registers
// hold sums). Compiled with -mavx2 -mfma; nothing here may run before the kernel row is known to be supported.
#include <immintrin.h>

#include "cpu/vector.h"

#define LD_WIDTH 8
#define LD_ROWS 6
#define LD_TABLE vector_avx2

namespace ld {
namespace {

typedef float vf __attribute__((vector_size(32), may_alias));
typedef int32_t vi __attribute__((vector_size(32), may_alias));

inline __attribute__((always_inline)) vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline __attribute__((always_inline)) vf maximum(vf a, vf b) { return _mm256_max_ps(a, b); }

#include "cpu/vector.inl"

}  // namespace

const VectorKernels LD_TABLE = {produce, rotate, attend, mix, scan, exponentials, above, cut, cap, exponential_of};

}  // namespace ld
