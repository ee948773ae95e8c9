// F32, F16 and BF16: one value per block, stored little-endian.
#include <limits>

#include "rows.h"

namespace ld::quant {

static_assert(std::numeric_limits<float>::is_iec559, "floats are copied from the file as they are");

void decode_f32(const void* src, float* dst, size_t n) { memcpy(dst, src, n * sizeof(float)); }

void decode_f16(const void* src, float* dst, size_t n) {
  const uint8_t* from = static_cast<const uint8_t*>(src);
  for (size_t i = 0; i < n; ++i) dst[i] = load_half(from + 2 * i);
}

void decode_bf16(const void* src, float* dst, size_t n) {
  const uint8_t* from = static_cast<const uint8_t*>(src);
  for (size_t i = 0; i < n; ++i) dst[i] = bfloat_to_float(load_u16(from + 2 * i));
}

// A value is infinite or NaN where all bits of its exponent are set. The sign and exponent of an f32 are the upper two
// of its bytes and look like a bfloat16, so one loop serves both. No early exit: the loops are vectorised.
static bool upper_halves_finite(const void* src, size_t n, size_t step, size_t offset, uint16_t exponent) {
  const uint8_t* from = static_cast<const uint8_t*>(src) + offset;
  bool bad = false;
  for (size_t i = 0; i < n; ++i) bad |= (load_u16(from + step * i) & exponent) == exponent;
  return !bad;
}

bool finite_f32(const void* src, size_t n) { return upper_halves_finite(src, n, 4, 2, 0x7f80); }
bool finite_f16(const void* src, size_t n) { return upper_halves_finite(src, n, 2, 0, 0x7c00); }
bool finite_bf16(const void* src, size_t n) { return upper_halves_finite(src, n, 2, 0, 0x7f80); }

}  // namespace ld::quant
