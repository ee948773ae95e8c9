// Peak of what every supported compiler makes of plain 16-byte vectors: eight 16-bit products a step, four floats.
#include <cstring>

#include "cpu/peak.h"

namespace ld {
namespace {

typedef int16_t Wide __attribute__((vector_size(16), may_alias));
typedef float Floats __attribute__((vector_size(16), may_alias));

constexpr int kAccumulators = 8, kInt8Operations = 16, kF32Operations = 8;

inline void int8_step(Wide& sum, Wide& a, Wide b) { sum = sum * a + b; }
inline void f32_step(Floats& sum, Floats& a, Floats b) { sum = sum * a + b; }

#include "cpu/peak.inl"

}  // namespace

const PeakKernels peak_scalar = {kAccumulators * kInt8Operations, kAccumulators* kF32Operations, int8_burst, f32_burst,
                                 read_burst};

}  // namespace ld
