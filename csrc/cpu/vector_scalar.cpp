// The vector kernels for any processor: four floats per vector, which every supported compiler turns into whatever the
// baseline offers (SSE2, NEON) or plain code. Products and sums round separately.
#include "cpu/vector.h"

#define LD_WIDTH 4
#define LD_ROWS 4
#define LD_TABLE vector_scalar

namespace ld {
namespace {

typedef float vf __attribute__((vector_size(16), may_alias));
typedef int32_t vi __attribute__((vector_size(16), may_alias));

inline vf fma(vf a, vf b, vf c) { return a * b + c; }
inline vf maximum(vf a, vf b) { return a > b ? a : b; }

#include "cpu/vector.inl"

}  // namespace

const VectorKernels LD_TABLE = {produce, rotate, attend, mix, scan, exponentials, above, cut, cap, exponential_of};

}  // namespace ld
