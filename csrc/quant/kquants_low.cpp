// Q2_K and Q3_K: super-blocks of 256 values in sixteen groups of 16. The low two bits of value 128 h + 32 j + i are
// bits 2 j and 2 j + 1 of byte 32 h + i.
//
//   Q2_K  16 bytes of scale and minimum, four bits each | 64 bytes | d dmin    (d * scale) * q - dmin * minimum
//   Q3_K  32 bytes of third bits | 64 bytes | 12 bytes of scales | d           (d * (scale - 32)) * (q - 4)
//
// Every product is exact in float (11 bits of d, at most 6 of a scale and 3 of q), so only the difference rounds.
#include "rows.h"

namespace ld::quant {
namespace {

constexpr size_t kBlock = 256, kHalf = 128, kGroup = 16;

// The low two bits of value i of a super-block.
inline int low_pair(const uint8_t* low, size_t i) { return low[i / kHalf * 32 + i % 32] >> (i % kHalf / 32 * 2) & 3; }

}  // namespace

void decode_q2_k(const void* src, float* dst, size_t n) {
  const uint8_t* block = static_cast<const uint8_t*>(src);
  for (size_t b = 0; b < n / kBlock; ++b, block += 84, dst += kBlock) {
    const float d = load_half(block + 80), dmin = load_half(block + 82);
    for (size_t i = 0; i < kBlock; ++i) {
      const uint8_t packed = block[i / kGroup];
      const float scale = d * static_cast<float>(packed & 15), minimum = dmin * static_cast<float>(packed >> 4);
      dst[i] = scale * static_cast<float>(low_pair(block + 16, i)) - minimum;
    }
  }
}

// The scale of group g: four bits in a half of byte g % 8, the upper two in byte 8 + g % 4.
void decode_q3_k(const void* src, float* dst, size_t n) {
  const uint8_t* block = static_cast<const uint8_t*>(src);
  for (size_t b = 0; b < n / kBlock; ++b, block += 110, dst += kBlock) {
    const float d = load_half(block + 108);
    const uint8_t* packed = block + 96;
    for (size_t group = 0; group < kBlock / kGroup; ++group) {
      const int code = (packed[group % 8] >> (group / 8 * 4) & 15) | (packed[8 + group % 4] >> (group / 4 * 2) & 3)
                                                                         << 4;
      const float scale = d * static_cast<float>(code - 32);
      for (size_t i = group * kGroup; i < (group + 1) * kGroup; ++i) {
        const int third = block[i % 32] >> (i / 32) & 1;
        dst[i] = scale * static_cast<float>(low_pair(block + 32, i) + 4 * third - 4);
      }
    }
  }
}

bool finite_q2_k(const void* src, size_t n) { return halves_finite(src, n / kBlock, 84, 80, 82); }
bool finite_q3_k(const void* src, size_t n) { return halves_finite(src, n / kBlock, 110, 108); }

}  // namespace ld::quant
