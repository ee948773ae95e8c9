// The vector kernels for ARM: four floats per vector, attention tiles of 12 rows x 2 vectors (24 of 32 registers hold
// sums). Needs nothing that not every 64-bit ARM processor has; named after the kernel row that it belongs to.
#include <arm_neon.h>

#include "cpu/vector.h"

#define LD_WIDTH 4
#define LD_ROWS 12
#define LD_TABLE vector_neon_dot

namespace ld {
namespace {

typedef float vf __attribute__((vector_size(16), may_alias));
typedef int32_t vi __attribute__((vector_size(16), may_alias));

inline __attribute__((always_inline)) vf fma(vf a, vf b, vf c) {
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
inline __attribute__((always_inline)) vf maximum(vf a, vf b) { return a > b ? a : b; }

#include "cpu/vector.inl"

}  // namespace

const VectorKernels LD_TABLE = {produce, rotate, attend, mix, scan, exponentials, above, cut, cap, exponential_of};

}  // namespace ld
