// IQ4_NL, IQ4_XS and MXFP4: four bits per value that name an entry of a codebook. Value i of 32 sits in the low four
// bits of byte i, value i + 16 in the high four.
//
//   IQ4_NL  d | 16 bytes                                                              d * book[q]
//   IQ4_XS  d | 2 bytes of upper scale bits | 4 of lower ones | 128 bytes (8 groups)  (d * (scale - 32)) * book[q]
//   MXFP4   exponent | 16 bytes                                                       2^(exponent - 128) * e2m1[q]
//
// A product rounds at most once (IQ4_XS: 11 + 6 + 7 bits), and nothing is added.
#include "codebook.h"

#include "rows.h"

namespace ld::quant {
namespace {

constexpr size_t kGroup = 32, kSuper = 256;
constexpr uint8_t kLargestExponent = 252;  // 12 times the scale of 253 is infinite; 255 means NaN

void decode_group(const uint8_t* packed, float scale, const int8_t* book, float* dst) {
  for (size_t i = 0; i < kGroup / 2; ++i) {
    dst[i] = scale * static_cast<float>(book[packed[i] & 15]);
    dst[i + kGroup / 2] = scale * static_cast<float>(book[packed[i] >> 4]);
  }
}

// Half of 2^(exponent - 127), because the codebook is doubled; the two smallest are denormal.
float half_power(uint8_t exponent) {
  return float_of_bits(exponent < 2 ? 0x00200000u << exponent : static_cast<uint32_t>(exponent - 1) << 23);
}

}  // namespace

void decode_iq4_nl(const void* src, float* dst, size_t n) {
  const uint8_t* block = static_cast<const uint8_t*>(src);
  for (size_t b = 0; b < n / kGroup; ++b, block += 18, dst += kGroup) {
    decode_group(block + 2, load_half(block), kCodebook, dst);
  }
}

void decode_iq4_xs(const void* src, float* dst, size_t n) {
  const uint8_t* block = static_cast<const uint8_t*>(src);
  for (size_t b = 0; b < n / kSuper; ++b, block += 136) {
    const float d = load_half(block);
    const uint32_t upper = load_u16(block + 2);
    for (size_t group = 0; group < kSuper / kGroup; ++group, dst += kGroup) {
      const int code = (block[4 + group / 2] >> (group % 2 * 4) & 15) | static_cast<int>(upper >> 2 * group & 3) << 4;
      decode_group(block + 8 + group * kGroup / 2, d * static_cast<float>(code - 32), kCodebook, dst);
    }
  }
}

void decode_mxfp4(const void* src, float* dst, size_t n) {
  const uint8_t* block = static_cast<const uint8_t*>(src);
  for (size_t b = 0; b < n / kGroup; ++b, block += 17, dst += kGroup) {
    decode_group(block + 1, half_power(block[0]), kE2m1, dst);
  }
}

bool finite_iq4_nl(const void* src, size_t n) { return halves_finite(src, n / kGroup, 18, 0); }
bool finite_iq4_xs(const void* src, size_t n) { return halves_finite(src, n / kSuper, 136, 0); }

bool finite_mxfp4(const void* src, size_t n) {
  const uint8_t* block = static_cast<const uint8_t*>(src);
  for (size_t b = 0; b < n / kGroup; ++b, block += 17) {
    if (block[0] > kLargestExponent) return false;
  }
  return true;
}

}  // namespace ld::quant
