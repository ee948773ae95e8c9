// Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 values with one half-precision scale d and, in the _1 types, a half-
// precision offset m. Value i sits in the low four bits of byte i, value i + 16 in the high four; fifth bits are apart.
//
//   Q4_0  d | 16 bytes          d * (q - 8)         Q5_0  d | 4 bytes of fifth bits | 16 bytes      d * (q - 16)
//   Q4_1  d m | 16 bytes        d * q + m           Q5_1  d m | 4 bytes of fifth bits | 16 bytes    d * q + m
//   Q8_0  d | 32 signed bytes   d * q
//
// Every product is exact in float (11 bits times at most 8), so only the sum rounds: results do not depend on whether
// the compiler fuses the two.
#include "rows.h"

namespace ld::quant {
namespace {

constexpr size_t kBlock = 32;

// Calls store(i, q) for the 32 unsigned values of a block; high holds the fifth bits, 0 for types of four.
template <class Store>
void unpack(const uint8_t* low, uint32_t high, Store store) {
  for (size_t i = 0; i < kBlock / 2; ++i) {
    store(i, (low[i] & 15) | (high >> i & 1) << 4);
    store(i + kBlock / 2, low[i] >> 4 | (high >> (i + kBlock / 2) & 1) << 4);
  }
}

// Bits: 4 or 5. The types without m are centred: they subtract half of their range.
template <int Bits, bool WithMinimum>
void decode(const void* src, float* dst, size_t n) {
  constexpr size_t kHigh = WithMinimum ? 4 : 2;
  constexpr size_t kLow = kHigh + (Bits == 5 ? 4 : 0);
  const uint8_t* block = static_cast<const uint8_t*>(src);
  for (size_t b = 0; b < n / kBlock; ++b, block += kLow + kBlock / 2, dst += kBlock) {
    const float d = load_half(block);
    uint32_t high = 0;
    if constexpr (Bits == 5) memcpy(&high, block + kHigh, sizeof high);
    if constexpr (WithMinimum) {
      const float m = load_half(block + 2);
      unpack(block + kLow, high, [&](size_t i, uint32_t q) { dst[i] = d * static_cast<float>(q) + m; });
    } else {
      unpack(block + kLow, high,
             [&](size_t i, uint32_t q) { dst[i] = d * static_cast<float>(static_cast<int>(q) - (1 << (Bits - 1))); });
    }
  }
}

}  // namespace

void decode_q4_0(const void* src, float* dst, size_t n) { decode<4, false>(src, dst, n); }
void decode_q4_1(const void* src, float* dst, size_t n) { decode<4, true>(src, dst, n); }
void decode_q5_0(const void* src, float* dst, size_t n) { decode<5, false>(src, dst, n); }
void decode_q5_1(const void* src, float* dst, size_t n) { decode<5, true>(src, dst, n); }

void decode_q8_0(const void* src, float* dst, size_t n) {
  const uint8_t* block = static_cast<const uint8_t*>(src);
  for (size_t b = 0; b < n / kBlock; ++b, block += 2 + kBlock, dst += kBlock) {
    const float d = load_half(block);
    for (size_t i = 0; i < kBlock; ++i) dst[i] = d * static_cast<float>(static_cast<int8_t>(block[2 + i]));
  }
}

bool finite_q4_0(const void* src, size_t n) { return halves_finite(src, n / kBlock, 18, 0); }
bool finite_q4_1(const void* src, size_t n) { return halves_finite(src, n / kBlock, 20, 0, 2); }
bool finite_q5_0(const void* src, size_t n) { return halves_finite(src, n / kBlock, 22, 0); }
bool finite_q5_1(const void* src, size_t n) { return halves_finite(src, n / kBlock, 24, 0, 2); }
bool finite_q8_0(const void* src, size_t n) { return halves_finite(src, n / kBlock, 34, 0); }

}  // namespace ld::quant
