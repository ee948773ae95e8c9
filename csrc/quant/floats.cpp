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
// of its bytes and look like a bfloat16, so one loop serves both. No early exit and a maximum of signed 16-bit numbers:
// that the loops are vectorised with any instruction set.
template <size_t kStep, int16_t kExponent>
bool upper_halves_finite(const void* src, size_t n) {
  const uint8_t* from = static_cast<const uint8_t*>(src) + kStep - 2;
  int16_t largest = 0;
  for (size_t i = 0; i < n; ++i) {
    const int16_t exponent = static_cast<int16_t>(load_u16(from + kStep * i) & kExponent);
    largest = largest > exponent ? largest : exponent;
  }
  return largest != kExponent;
}

bool finite_f32(const void* src, size_t n) { return upper_halves_finite<4, 0x7f80>(src, n); }
bool finite_f16(const void* src, size_t n) { return upper_halves_finite<2, 0x7c00>(src, n); }
bool finite_bf16(const void* src, size_t n) { return upper_halves_finite<2, 0x7f80>(src, n); }

}  // namespace ld::quant
