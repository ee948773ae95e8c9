// IEEE half precision and bfloat16 to and from float, in integer arithmetic: exact for denormals and infinities,
// rounding to nearest even, the same on every processor. A NaN stays a NaN with its sign and becomes a quiet one.
//
// The functions are static, not inline: files compiled for wider instruction sets include this header too, and the
// linker must not pick their copies for code that runs everywhere.
#pragma once

#include <cstdint>
#include <cstring>

namespace ld {

[[maybe_unused]] static float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

[[maybe_unused]] static uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

[[maybe_unused]] static float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) {  // infinity, NaN
    const uint32_t quiet = magnitude > 0x7c00 ? 0x00400000 : 0;
    return float_of_bits(sign | 0x7f800000 | quiet | (magnitude & 0x3ff) << 13);
  }
  if (magnitude < 0x0400) {  // zero and denormals: magnitude * 2^-24 is exact in float
    return float_of_bits(sign | bits_of_float(static_cast<float>(magnitude) * 0x1p-24f));
  }
  return float_of_bits(sign | ((magnitude << 13) + (112u << 23)));  // the exponent's bias goes from 15 to 127
}

[[maybe_unused]] static uint16_t float_to_half(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65,520 and more round to infinity
  if (magnitude < 0x38800000) {                       // below 2^-14: denormals, in units of 2^-24
    if (magnitude < 0x33000000) return sign;          // below 2^-25
    const uint32_t shift = 126 - (magnitude >> 23);   // 14..24
    const uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000;
    const uint32_t half_unit = 1u << (shift - 1);
    uint32_t units = mantissa >> shift;
    const uint32_t rest = mantissa & ((1u << shift) - 1);
    units += rest > half_unit || (rest == half_unit && (units & 1));
    return static_cast<uint16_t>(sign | units);
  }
  const uint32_t rebiased = magnitude - (112u << 23);
  return static_cast<uint16_t>(sign | ((rebiased + 0xfff + (rebiased >> 13 & 1)) >> 13));
}

[[maybe_unused]] static float bfloat_to_float(uint16_t value) {
  return float_of_bits(static_cast<uint32_t>(value) << 16);
}

[[maybe_unused]] static uint16_t float_to_bfloat(float value) {
  const uint32_t bits = bits_of_float(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace ld
