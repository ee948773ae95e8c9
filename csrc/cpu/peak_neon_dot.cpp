// Peak of ARM with the dot product extension: sdot on 16 bytes, fmla on four floats.
#include <arm_neon.h>

#include <cstring>

#include "cpu/peak.h"

namespace ld {
namespace {

using Wide = int8x16_t;
using Floats = float32x4_t;

constexpr int kAccumulators = 16, kInt8Operations = 32, kF32Operations = 8;

inline void int8_step(Wide& sum, Wide& a, Wide b) {
  sum = vreinterpretq_s8_s32(vdotq_s32(vreinterpretq_s32_s8(sum), a, b));
}
inline void f32_step(Floats& sum, Floats& a, Floats b) { sum = vfmaq_f32(sum, a, b); }

#include "cpu/peak.inl"

}  // namespace

const PeakKernels peak_neon_dot = {kAccumulators * kInt8Operations, kAccumulators* kF32Operations, int8_burst,
                                   f32_burst, read_burst};

}  // namespace ld
