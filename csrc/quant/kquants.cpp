// Q4_K, Q5_K and Q6_K: super-blocks of 256 values. In Q4_K and Q5_K eight groups of 32 have a 6-bit scale and a 6-bit
// minimum each, in units of the super-block's half-precision d and dmin; in Q6_K sixteen groups of 16 have an 8-bit
// scale.
//
//   Q4_K  d dmin | 12 bytes of scales | 128 bytes             (d * scale) * q - dmin * minimum
//   Q5_K  d dmin | 12 bytes of scales | 32 of fifth bits | 128 bytes    the same
//   Q6_K  128 bytes | 64 of upper two bits | 16 scales | d    (d * scale) * (q - 32)
//
// Every product is exact in float: 11 bits of d, at most 7 of a scale and at most 6 of q make 24. Only the difference
// rounds, so results do not depend on whether the compiler fuses.
#include "rows.h"

namespace ld::quant {
namespace {

constexpr size_t kBlock = 256, kGroup = 32, kGroups = kBlock / kGroup, kScaleBytes = 12;

struct GroupScale {
  uint8_t scale, minimum;
};

// Groups 0-3 have their six bits in bytes 0-3 (scale) and 4-7 (minimum). Groups 4-7 have four bits of each in bytes
// 8-11 and the upper two in the top of the bytes of group - 4.
GroupScale group_scale(const uint8_t* packed, size_t group) {
  if (group < 4) return {static_cast<uint8_t>(packed[group] & 63), static_cast<uint8_t>(packed[group + 4] & 63)};
  const uint8_t low = packed[group + 4];
  return {static_cast<uint8_t>((low & 15) | (packed[group - 4] >> 6) << 4),
          static_cast<uint8_t>(low >> 4 | (packed[group] >> 6) << 4)};
}

// Groups 2j and 2j + 1 are the low and the high four bits of the same 32 bytes; bit `group` of high[i] is a fifth bit.
template <bool WithHigh>
void decode(const void* src, float* dst, size_t n) {
  constexpr size_t kHigh = 4 + kScaleBytes;
  constexpr size_t kLow = kHigh + (WithHigh ? kGroup : 0);
  const uint8_t* block = static_cast<const uint8_t*>(src);
  for (size_t b = 0; b < n / kBlock; ++b, block += kLow + kBlock / 2) {
    const float d = load_half(block), dmin = load_half(block + 2);
    for (size_t group = 0; group < kGroups; ++group, dst += kGroup) {
      const GroupScale packed = group_scale(block + 4, group);
      const float scale = d * static_cast<float>(packed.scale);
      const float minimum = dmin * static_cast<float>(packed.minimum);
      const uint8_t* low = block + kLow + group / 2 * kGroup;
      for (size_t i = 0; i < kGroup; ++i) {
        uint32_t q = low[i] >> (group % 2 * 4) & 15;
        if constexpr (WithHigh) q |= (block[kHigh + i] >> group & 1) << 4;
        dst[i] = scale * static_cast<float>(q) - minimum;
      }
    }
  }
}

}  // namespace

void decode_q4_k(const void* src, float* dst, size_t n) { decode<false>(src, dst, n); }
void decode_q5_k(const void* src, float* dst, size_t n) { decode<true>(src, dst, n); }

void decode_q6_k(const void* src, float* dst, size_t n) {
  const uint8_t* block = static_cast<const uint8_t*>(src);
  for (size_t b = 0; b < n / kBlock; ++b, block += 210) {
    const float d = load_half(block + 208);
    for (size_t group = 0; group < kGroups; ++group, dst += kGroup) {
      // Each half of the super-block has four groups: two in the low and two in the high bits of 64 bytes.
      const size_t half = group / 4, quarter = group % 4;
      const uint8_t* low = block + half * 64 + quarter % 2 * kGroup;
      const uint8_t* high = block + 128 + half * kGroup;
      const int8_t* scales = reinterpret_cast<const int8_t*>(block + 192) + group * 2;
      for (size_t i = 0; i < kGroup; ++i) {
        const int q = (low[i] >> (quarter / 2 * 4) & 15) | (high[i] >> (quarter * 2) & 3) << 4;
        dst[i] = d * static_cast<float>(scales[i / 16]) * static_cast<float>(q - 32);
      }
    }
  }
}

bool finite_q4_k(const void* src, size_t n) { return halves_finite(src, n / kBlock, 144, 0, 2); }
bool finite_q5_k(const void* src, size_t n) { return halves_finite(src, n / kBlock, 176, 0, 2); }
bool finite_q6_k(const void* src, size_t n) { return halves_finite(src, n / kBlock, 210, 208); }

}  // namespace ld::quant
